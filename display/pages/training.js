// The timeline of the training page, and reloading it without losing the position.
"use strict";

const timeline = find("#epoch");

function showEpoch() {
  const [epoch, kind, hasAttention] = data.epochs[timeline.value];
  const article = find("article");
  const stem = `images/epoch${String(epoch).padStart(3, "0")}_`;
  if (article.dataset.kind !== String(kind)) {
    find(".groups", article).replaceWith(findAll("template.kind")[kind].content.cloneNode(true));
    article.dataset.kind = kind;
  }
  for (const figure of findAll("figure", article)) {
    const image = find("img", figure);
    image.src = `${stem}${encodeURIComponent(figure.dataset.label)}.png`;
    image.alt = `epoch ${epoch}: ${find("figcaption", figure)?.textContent ?? ""}`;
  }
  find("h2 a", article).textContent = `epoch ${epoch}`;
  timeline.setAttribute("aria-valuetext", `epoch ${epoch}`);
  if (hasAttention) article.dataset.attention = `${stem}attention.js`;
  else delete article.dataset.attention;
  const images = data.ends[epoch];
  for (const line of findAll(".current")) {
    const x = (images / find(".charts").dataset.end) * line.ownerSVGElement.viewBox.baseVal.width;
    line.style.visibility = images === undefined ? "hidden" : "visible";
    if (images !== undefined) ["x1", "x2"].forEach((end) => line.setAttribute(end, x));
  }
}

showNeighbor = (by) => {
  timeline.valueAsNumber += by;
  showEpoch();
  openViewer(find("article"));
};

const play = find(".play");
let playing = 0;
const isLast = () => timeline.value === timeline.max;
const stop = () => {
  clearInterval(playing);
  playing = 0;
  play.textContent = "Play";
  play.setAttribute("aria-pressed", "false");
};
play.onclick = () => {
  if (playing) return stop();
  if (isLast()) timeline.value = 0;
  showEpoch();
  play.textContent = "Pause";
  play.setAttribute("aria-pressed", "true");
  playing = setInterval(() => {
    timeline.valueAsNumber += 1;
    showEpoch();
    if (isLast()) stop();
  }, 400);
};
timeline.oninput = showEpoch;
find(".timeline").onsubmit = (event) => event.preventDefault();

const saved = history.state;
if (saved?.epoch !== undefined) timeline.value = data.epochs.findIndex(([epoch]) => epoch === saved.epoch);
showEpoch();
find("details").open = Boolean(saved?.options);
if (saved) {
  history.scrollRestoration = "manual";
  scrollTo(0, saved.top);
}
const refresh = () => {
  if (viewer.open || playing || document.hidden) return;
  const epoch = isLast() ? undefined : data.epochs[timeline.value][0]; // undefined: stay at the last one
  history.replaceState({ epoch, top: scrollY, options: find("details").open }, "");
  location.reload();
};
if (data.refresh) setInterval(refresh, 1000 * data.refresh);
