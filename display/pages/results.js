// Filter, order and keys of the results page.
"use strict";

const toolbar = find(".toolbar");
const main = find("main");
const cards = findAll("article:not(.wide)");
const details = new Map(cards.map((card) => [
  card, { name: find("h2", card).textContent.toLowerCase(), scores: JSON.parse(card.dataset.scores ?? "{}") },
]));

/** Whether the name of a card contains all words; a word such as SSIM>0.3 compares a score instead. */
const matches = (card, words) => words.every((word) => {
  const { name, scores } = details.get(card);
  const [, score, sign, bound] = word.match(/^([a-z]\w*)([<>])=?(\d*\.?\d+)$/) ?? [];
  const known = Object.keys(scores).find((key) => key.toLowerCase() === score);
  if (!known) return name.includes(word);
  return sign === "<" ? scores[known] <= Number(bound) : scores[known] >= Number(bound);
});
const filter = () => {
  const words = toolbar.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const card of cards) card.hidden = !matches(card, words);
  const count = visibleCards().length;
  find(".count").textContent = count < cards.length ? `${count} of ${cards.length} shown` : `${count} shown`;
};
const order = () => {
  const [, sign, score] = toolbar.order.value.match(/^([+-])(.+)$/) ?? [];
  const natural = new Intl.Collator(undefined, { numeric: true });
  const value = (card) => details.get(card).scores[score] ?? (sign === "-" ? -Infinity : Infinity);
  const sorted = [...cards];
  if (score) sorted.sort((one, two) => (value(one) - value(two)) * (sign === "-" ? -1 : 1) || 0);
  if (toolbar.order.value === "name") {
    sorted.sort((one, two) => natural.compare(details.get(one).name, details.get(two).name));
  }
  main.append(...sorted);
};
toolbar.filter.oninput = filter;
toolbar.order.onchange = order;
toolbar.onsubmit = (event) => event.preventDefault();
filter();
order();

document.addEventListener("keydown", (event) => {
  if (viewer.open || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
  const all = visibleCards();
  const current = all.indexOf(document.activeElement.closest("article"));
  if (event.key === "/") {
    event.preventDefault();
    toolbar.filter.focus();
  } else if ("jk".includes(event.key) && all.length) {
    const next = all[clamp(current + (event.key === "j" ? 1 : -1), 0, all.length - 1)];
    find(".view", next).focus({ preventScroll: true });
    next.scrollIntoView({ block: "start" });
  }
});
