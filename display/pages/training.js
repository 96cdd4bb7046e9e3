// The time line of the training page, and looking for a new page without losing the place.
"use strict";

const timeLine = find("#epoch");

function showEpoch() {
  const [epoch, kind, hasAttention] = data.epochs[timeLine.value];
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
  timeLine.setAttribute("aria-valuetext", `epoch ${epoch}`);
  if (hasAttention) article.dataset.attention = `${stem}attention.js`;
  else delete article.dataset.attention;
  const images = data.ends[epoch];
  for (const line of findAll(".now")) {
    const x = (images / find(".charts").dataset.end) * line.ownerSVGElement.viewBox.baseVal.width;
    line.style.visibility = images === undefined ? "hidden" : "visible";
    if (images !== undefined) ["x1", "x2"].forEach((end) => line.setAttribute(end, x));
  }
}

step = (by) => {
  timeLine.valueAsNumber += by;
  showEpoch();
  view(find("article"));
};

const play = find(".play");
let playing = 0;
const isLast = () => timeLine.value === timeLine.max;
const stop = () => {
  clearInterval(playing);
  playing = 0;
  play.textContent = "Play";
  play.setAttribute("aria-pressed", "false");
};
play.onclick = () => {
  if (playing) return stop();
  if (isLast()) timeLine.value = 0;
  showEpoch();
  play.textContent = "Pause";
  play.setAttribute("aria-pressed", "true");
  playing = setInterval(() => {
    timeLine.valueAsNumber += 1;
    showEpoch();
    if (isLast()) stop();
  }, 400);
};
timeLine.oninput = showEpoch;
find(".time").onsubmit = (event) => event.preventDefault();

const kept = history.state;
if (kept?.epoch !== undefined) timeLine.value = data.epochs.findIndex(([epoch]) => epoch === kept.epoch);
showEpoch();
find("details").open = Boolean(kept?.options);
if (kept) {
  history.scrollRestoration = "manual";
  scrollTo(0, kept.top);
}
const refresh = () => {
  if (viewer.open || playing || document.hidden) return;
  const epoch = isLast() ? undefined : data.epochs[timeLine.value][0]; // who looks at the last one wants the new one
  history.replaceState({ epoch, top: scrollY, options: find("details").open }, "");
  location.reload();
};
if (data.refresh) setInterval(refresh, 1000 * data.refresh);
