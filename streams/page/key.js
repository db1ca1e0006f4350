/**
 * The API key, for a server that asks for one. This tab keeps it until it is closed.
 */

const NAME = `streams key of ${new URL(".", document.baseURI).pathname}`;

/** The headers of each request; none before the server has asked for a key. */
export function keyHeaders() {
  const key = sessionStorage.getItem(NAME);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

export const hasKey = () => sessionStorage.getItem(NAME) !== null;

/** fetch, which asks for the key, in a dialog, as long as the server refuses the one that it has. */
export async function fetchWithKey(url) {
  while (true) {
    const response = await fetch(url, { headers: keyHeaders() });
    if (response.status !== 401) return response;
    const { detail } = await response.json().catch(() => ({}));
    sessionStorage.setItem(NAME, await asked(hasKey() ? detail : ""));
  }
}

/** What the user gives as the key. @param {string} refused says why the one before was not */
function asked(refused) {
  const dialog = document.getElementById("key-dialog");
  const field = document.getElementById("key");
  document.getElementById("key-problem").textContent = refused;
  field.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onsubmit = () => resolve(field.value.trim());
    dialog.oncancel = (event) => event.preventDefault(); // Without a key there is nothing to show.
  });
}
