/* Figures: a click enlarges, a second one shows every pixel, arrow keys go on. */
const dialog = document.querySelector("dialog");
let current = 0;
const cards = () => all(".gallery .enlarge").filter((b) => b.offsetParent !== null);
function enlarge(index) {
  const list = cards();
  current = (index + list.length) % list.length;
  const source = list[current].querySelector("img");
  const image = dialog.querySelector("img");
  image.src = source.src;
  image.alt = source.alt;
  Object.assign(dialog.querySelector("[data-save]"), { href: source.src, download: `${fileName(source.alt)}.png` });
  dialog.querySelector("p").textContent = `${source.alt} (${current + 1} of ${list.length})`;
  if (!dialog.open) dialog.showModal();
}
document.addEventListener("click", (event) => {
  const button = event.target.closest(".enlarge");
  if (button) enlarge(cards().indexOf(button));
});
dialog.addEventListener("click", (event) => {
  const go = event.target.closest("[data-go]");
  if (go) enlarge(current + Number(go.dataset.go));
  else if (event.target.closest("img, [data-natural]")) dialog.classList.toggle("natural"); // to read small print
  else if (!event.target.closest("p, a")) dialog.close();
});
dialog.addEventListener("keydown", (event) => {
  const turn = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (turn) { event.preventDefault(); enlarge(current + turn); }
});

/* A link to a run opens its details. */
function openTarget() {
  const target = document.getElementById(location.hash.slice(1));
  if (target?.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
}
addEventListener("hashchange", openTarget);
document.addEventListener("click", (event) => {
  if (event.target.closest?.('a[href^="#run-"]')) setTimeout(openTarget);
});
openTarget();
showMeans();
showClaims();
showColumns();
