/**
 * Everything without a view: sign-in, event stream, first requests. It is a script of its
 * own, so that answers arrive while the browser still reads the views.
 */

import { stayLive } from "./live.js";
import { keepFresh } from "./polling.js";
import { begin } from "./session.js";

await begin();
stayLive();
keepFresh();
