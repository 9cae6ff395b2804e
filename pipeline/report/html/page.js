"use strict";
// Hides the prompts that do not match. It reads texts and attributes, and writes nothing but the count.
(() => {
  const form = document.getElementById("filter");
  if (!form) return;
  const cards = [...document.querySelectorAll("details.prompt")];
  const texts = cards.map((card) => card.textContent.toLowerCase());
  const field = (name) => (document.getElementById("by-" + name) || { value: "" }).value;
  const update = () => {
    const words = field("text").toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = { iteration: field("iteration"), arm: field("arm"), reason: field("reason") };
    let matching = 0;
    cards.forEach((card, i) => {
      const fits =
        words.every((word) => texts[i].includes(word)) &&
        Object.entries(chosen).every(([name, value]) => !value || card.dataset[name] === value);
      card.hidden = !fits;
      matching += fits;
    });
    document.getElementById("matching").textContent = matching + " of " + cards.length;
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  update();
})();
