"use strict";
document.documentElement.classList.add("js");
const find = (id) => document.getElementById(id);

find("copy")?.addEventListener("click", async (event) => {
  const button = event.currentTarget;
  try {
    await navigator.clipboard.writeText(find("config").textContent);
  } catch {
    // Browsers that keep the clipboard from local files copy what is selected.
    getSelection().selectAllChildren(find("config"));
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1600);
});

find("fault-filter")?.addEventListener("input", (event) => {
  const word = event.target.value.trim().toLowerCase();
  const rows = [...find("fault-rows").rows];
  for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(word);
  find("fault-count").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
});

const figures = [...document.querySelectorAll("#figures figure")];
const filters = [...document.querySelectorAll("select[data-filter]")];
function showFigures() {
  const wanted = filters.filter((filter) => filter.value !== "");
  let shown = 0;
  for (const figure of figures) {
    figure.hidden = !wanted.every((filter) => figure.dataset[filter.dataset.filter].split(" ").includes(filter.value));
    shown += !figure.hidden;
  }
  find("gallery-count").textContent = shown === figures.length ? `${shown} pictures` : `${shown} of ${figures.length} pictures`;
}
if (figures.length) {
  const gallery = find("figures");
  for (const filter of filters) {
    filter.addEventListener("change", () => {
      // A shorter page would scroll the filter away from under the hand.
      gallery.style.minHeight ||= `min(80vh, ${gallery.offsetHeight}px)`;
      showFigures();
    });
  }
  showFigures();
}
