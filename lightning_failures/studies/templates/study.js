"use strict";
(() => {
  const study = JSON.parse(document.getElementById("study").textContent);
  const main = document.getElementById("main");
  const answers = study.questions.map(() => ({ chosen: [], fields: {}, seconds: 0 }));
  let annotator = "", place = -1, shownAt = 0;

  const element = (tag, options = {}, children = []) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(options)) {
      if (key === "text") node.textContent = value;
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  };
  const pictures = (images, name) => images.map((uri, k) => element("img", { src: uri, alt: `${name}, image ${k + 1}` }));

  const complete = (k) => {
    const question = study.questions[k], answer = answers[k];
    const chosen = question.choices.length === 0 || question.several || answer.chosen.length > 0;
    const filled = (field) => field.optional || (answer.fields[field.name] ?? "") !== "";
    return chosen && question.fields.every(filled);
  };

  const leave = () => {
    if (place >= 0 && place < study.questions.length) answers[place].seconds += (performance.now() - shownAt) / 1000;
  };
  const go = (to) => {
    leave();
    place = Math.max(-1, Math.min(to, study.questions.length));
    shownAt = performance.now();
    show();
  };
  const next = () => {
    if (place === -1 ? annotator.trim() !== "" : place < study.questions.length && complete(place)) go(place + 1);
  };

  const toggle = (k) => {
    const question = study.questions[place], answer = answers[place];
    if (k >= question.choices.length) return;
    if (question.several) {
      answer.chosen = answer.chosen.includes(k) ? answer.chosen.filter((one) => one !== k) : [...answer.chosen, k].sort();
    } else answer.chosen = [k];
    refresh();
  };
  const fill = (field, value) => {
    answers[place].fields[field.name] = value;
    refresh();
  };

  const refresh = () => {
    const answer = answers[place];
    main.querySelectorAll("[data-choice]").forEach((node) =>
      node.setAttribute("aria-pressed", String(answer.chosen.includes(Number(node.dataset.choice)))));
    main.querySelectorAll("[data-field]").forEach((node) =>
      node.setAttribute("aria-pressed", String(String(answer.fields[node.dataset.field]) === node.dataset.value)));
    const forward = document.getElementById("next");
    if (forward) forward.disabled = !complete(place);
  };

  const options = (field) => {
    if (field.kind === "scale") {
      const ends = field.options;
      return [1, 2, 3, 4, 5].map((value) => {
        const text = value === 1 ? `1 ${ends[0] ?? ""}` : value === 5 ? `5 ${ends[1] ?? ""}` : String(value);
        return [value, text.trim()];
      });
    }
    return field.options.map((text) => [text, text]);
  };
  const fieldset = (field) => {
    const legend = element("legend", { text: field.optional ? `${field.label} (may stay empty)` : field.label });
    if (field.kind === "text") {
      const area = element("textarea", { rows: 2, "aria-label": field.label, oninput: (event) => fill(field, event.target.value) });
      area.value = answers[place].fields[field.name] ?? "";
      return element("fieldset", {}, [legend, area]);
    }
    const buttons = options(field).map(([value, text]) => element("button", {
      type: "button", text, "data-field": field.name, "data-value": String(value), "aria-pressed": "false",
      onclick: () => fill(field, value),
    }));
    return element("fieldset", {}, [legend, element("div", { class: "choices" }, buttons)]);
  };

  const start = () => {
    const name = element("input", { id: "name", autocomplete: "off", oninput: (event) => {
      annotator = event.target.value;
      document.getElementById("next").disabled = annotator.trim() === "";
    } });
    name.value = annotator;
    const label = element("label", { for: "name", text: "Your name or number" });
    const keys = "Keys: 1 to 9 choose, Enter goes on, Backspace goes back.";
    main.replaceChildren(
      element("h1", { text: study.title }),
      ...study.instructions.map((text) => element("p", { text })),
      element("p", { class: "muted", text: `${study.questions.length} questions. ${keys}` }),
      element("p", {}, [label]), name,
      element("nav", {}, [element("button", { id: "next", type: "button", text: "Start", onclick: next })]),
    );
    document.getElementById("next").disabled = annotator.trim() === "";
    name.focus();
  };

  const ask = () => {
    const question = study.questions[place];
    const panels = question.panels.map((panel) => element("div", { class: "panel" }, [
      element("p", { text: panel.title }), ...pictures(panel.images, panel.title)]));
    const choices = question.choices.map((choice, k) => element("button", {
      type: "button", class: "choice", "data-choice": String(k), "aria-pressed": "false", onclick: () => toggle(k),
    }, [element("p", { text: `${k + 1}  ${choice.text}` }), ...pictures(choice.images, choice.text || `choice ${k + 1}`)]));
    main.replaceChildren(
      element("p", { class: "muted", text: `Question ${place + 1} of ${study.questions.length}` }),
      element("progress", { max: study.questions.length, value: place, "aria-label": "Progress" }),
      element("h1", { text: question.prompt, tabindex: "-1" }),
      element("div", { class: "panels" }, panels),
      ...(choices.length ? [element("h2", { text: question.several ? "Choose any number" : "Choose one" })] : []),
      element("div", { class: "choices" }, choices),
      ...question.fields.map(fieldset),
      element("nav", {}, [
        element("button", { type: "button", text: "Back", onclick: () => go(place - 1) }),
        element("button", { id: "next", type: "button", text: "Next", onclick: next }),
      ]),
    );
    refresh();
    (main.querySelector("textarea") ?? main.querySelector("h1")).focus();
  };

  const record = () => ({
    schema: 1, task: study.task, study: study.id, annotator: annotator.trim(),
    answers: study.questions.map((question, k) => ({
      question: question.id, condition: question.condition, chosen: answers[k].chosen,
      kinds: question.choices.map((choice) => choice.kind), truth: question.truth, control: question.control,
      fields: answers[k].fields, seconds: Math.round(answers[k].seconds * 10) / 10,
    })),
  });
  const download = () => {
    const link = element("a", { download: `answers-${study.task}-${annotator.trim().replace(/[^\w-]+/g, "_")}.json` });
    link.href = URL.createObjectURL(new Blob([JSON.stringify(record(), null, 1)], { type: "application/json" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const end = () => {
    main.replaceChildren(
      element("h1", { text: "Thank you" }),
      element("p", { text: "Download your answers and send the file to the person who sent you this page." }),
      element("nav", {}, [
        element("button", { type: "button", text: "Back", onclick: () => go(place - 1) }),
        element("button", { id: "download", type: "button", text: "Download answers", onclick: download }),
      ]),
    );
    document.getElementById("download").focus();
  };
  const show = () => (place < 0 ? start : place < study.questions.length ? ask : end)();

  document.addEventListener("keydown", (event) => {
    const typing = ["TEXTAREA", "INPUT"].includes(event.target.tagName);
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Enter" && !event.shiftKey && event.target.tagName !== "BUTTON") {
      event.preventDefault();
      next();
    } else if (!typing && event.key === "Backspace") {
      event.preventDefault();
      go(place - 1);
    } else if (!typing && /^[1-9]$/.test(event.key) && place >= 0 && place < study.questions.length) {
      const question = study.questions[place], k = Number(event.key) - 1;
      if (question.choices.length) toggle(k);
      else {
        const buttons = question.fields.filter((field) => field.kind !== "text");
        const open = buttons.find((field) => !(field.name in answers[place].fields)) ?? buttons[0];
        if (open && options(open)[k]) fill(open, options(open)[k][0]);
      }
    }
  });
  window.addEventListener("beforeunload", (event) => {
    if (place >= 0 && place < study.questions.length) event.preventDefault();
  });
  show();
})();
