import { html, useEffect, useState } from "../lib.js";
import { paste, refusal } from "../session.js";
import { Command, Icon } from "../ui.js";

/** The page without a valid token. */
export function SignIn() {
  const [token, setToken] = useState("");
  const [apart, setApart] = useState(null);
  const why = apart ?? refusal.value;
  useEffect(() => {
    probe().then(setApart);
  }, []);
  const submit = (event) => {
    event.preventDefault();
    if (token.trim()) paste(token);
  };
  return html`<main class="signin">
    <${Icon} px="48" />
    <h1>Octaskly</h1>
    ${why && html`<p class="problem" role="alert"><strong>${why.text}</strong>${why.hint && html`<br />${why.hint}`}</p>`}
    ${apart === null && html`<p>Type this in a terminal on this machine. It opens the dashboard and signs you in:</p>
    <${Command} text="octaskly open" />
    <form onSubmit=${submit}>
      <label for="token">Or paste a token</label>
      <div class="row">
        <input id="token" type="password" autocomplete="off" spellcheck=${false}
          value=${token} onInput=${(event) => setToken(event.currentTarget.value)} />
        <button class="button primary" disabled=${!token.trim()}>Sign in</button>
      </div>
      <p class="hint"><code>octaskly token create --role viewer</code> prints a token that can only read.</p>
    </form>`}
  </main>`;
}

/** Returns a problem that no token solves: the node is in no mesh, or does not answer. */
async function probe() {
  try {
    const answer = await fetch("/api/v1/nodes");
    if (answer.status === 401) return null;
    const { error, hint } = await answer.json();
    return { text: error, hint };
  } catch {
    return { text: "The node does not answer", hint: "Is its agent running? To find out, type octaskly doctor in a terminal on it." };
  }
}
