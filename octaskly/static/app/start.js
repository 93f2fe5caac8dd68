/**
 * What needs no view: signing in, the stream, the first questions. The page names it as a
 * script of its own, so that answers come while the views are still being read.
 */

import { stayLive } from "./live.js";
import { keepFresh } from "./polling.js";
import { begin } from "./session.js";

await begin();
stayLive();
keepFresh();
