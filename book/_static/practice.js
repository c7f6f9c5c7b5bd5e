// The practice page: answers, a filter, a score that stays in this browser, runs of ten
// against the clock. Without this script the page reads as questions and folded answers.
{
  const LETTERS = "ABCD";
  const RUN = 10;
  const SECONDS = 72; // a question: about 100 of them in 120 minutes
  const KEYS = { score: "normbook-practice", language: "normbook-practice-language" };

  const practice = document.querySelector(".practice");
  const form = practice.querySelector("form");
  const runPlace = practice.querySelector(".practice-run");
  const tally = practice.querySelector(".tally");
  const clock = practice.querySelector(".clock");
  const button = (name) => form.querySelector(`button[name=${name}]`);
  const sections = [...practice.querySelectorAll(".practice-of")];
  const questions = [...practice.querySelectorAll(".question")].map((article) => ({
    article,
    id: article.id,
    section: article.closest("section"),
    inputs: [...article.querySelectorAll("input")],
    verdict: article.querySelector(".verdict"),
    answer: article.querySelector("details"),
    right: Number(article.dataset.right),
    settled: false,
    given: null, // the answer, once it is told
  }));
  const byId = new Map(questions.map((question) => [question.id, question]));

  // ---------------------------------------------------------------- what is stored

  const stored = (key) => {
    try {
      return localStorage.getItem(key);
    } catch {
      return null; // then the score lasts as long as the page
    }
  };
  const store = (key, value) => {
    try {
      if (value === null) localStorage.removeItem(key);
      else localStorage.setItem(key, value);
    } catch {}
  };
  const readScore = () => {
    try {
      const known = Object.entries(JSON.parse(stored(KEYS.score)) ?? {});
      return new Map(known.filter(([id, right]) => byId.has(id) && right === !!right));
    } catch {
      return new Map();
    }
  };
  let score = readScore(); // id of a question: whether its last answer was right
  const remember = (question, right) => {
    score.set(question.id, right);
    store(KEYS.score, JSON.stringify(Object.fromEntries(score)));
  };

  // ---------------------------------------------------------------- what is said

  // In both languages; the style sheet shows one where one is chosen.
  const say = (place, en, ja) => {
    const [first, second] = [document.createElement("span"), document.createElement("span")];
    first.className = "label-en";
    second.className = "label-ja";
    second.lang = "ja";
    first.textContent = en;
    second.textContent = ja;
    place.replaceChildren(first, second);
  };
  const minutes = (seconds) =>
    `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;

  // ---------------------------------------------------------------- what is shown

  let only = null; // the questions to try again
  let run = null; // {picked, ends, started, timer}
  const value = (name) => form.querySelector(`#practice-${name}`)?.value ?? "";
  const matches = ({ article }) =>
    ["chapter", "kind", "level"].every(
      (name) => !value(name) || article.dataset[name] === value(name),
    );
  const shown = () =>
    questions.filter((question) => (only ? only.has(question) : matches(question)));

  const count = () => {
    const here = run?.picked ?? shown();
    const known = here.filter(({ id }) => score.has(id));
    const right = known.filter(({ id }) => score.get(id)).length;
    const wrong = [...score.values()].filter((held) => !held).length;
    button("again").disabled = !wrong;
    button("run").disabled = !shown().length;
    button("forget").disabled = !score.size;
    if (run?.over) return;
    if (run) {
      const left = here.filter((question) => !chosen(question)).length;
      if (left) say(tally, `${left} of ${here.length} to answer`, `残り ${left} 問`);
      else say(tally, "All answered: finish, or alter one", "全問解答済み");
    } else {
      say(
        tally,
        `${here.length} questions, ${known.length} answered, ${right} right`,
        `${here.length} 問中 ${known.length} 問解答、${right} 問正解`,
      );
    }
  };

  const show = () => {
    const here = new Set(run ? run.picked : shown());
    for (const question of questions) {
      const { id, article } = question;
      const last = article.querySelector(".last-time");
      article.hidden = !here.has(question);
      if (!score.has(id)) last.replaceChildren();
      else if (score.get(id)) say(last, "✓ last time", "✓ 前回正解");
      else say(last, "✗ last time", "✗ 前回不正解");
    }
    for (const section of sections) {
      section.hidden = !section.querySelector(".question:not([hidden])");
      // And the line that leads there from "On this page".
      const line = document.querySelector(`.page-toc a[href="#${section.id}"]`);
      line?.closest("li").toggleAttribute("hidden", section.hidden);
    }
    for (const name of ["chapter", "kind", "level"]) {
      const list = form.querySelector(`#practice-${name}`);
      if (list) list.disabled = !!(only || run);
    }
    button("run").hidden = button("again").hidden = button("forget").hidden = !!run;
    button("finish").hidden = !run || run.over;
    button("all").hidden = !only && !run?.over;
    runPlace.hidden = !run;
    clock.hidden = !run || run.over;
    count();
  };

  // ---------------------------------------------------------------- an answer

  const chosen = ({ inputs }) => inputs.find((input) => input.checked);

  const reset = (question) => {
    question.settled = false;
    question.given = null;
    question.answer.open = false;
    question.verdict.replaceChildren();
    question.article.classList.remove("settled", "missed");
    for (const input of question.inputs) {
      input.checked = false;
      tell(input, "");
    }
  };

  const tell = (input, text) => {
    input.closest("label").querySelector(".told").textContent = text;
  };

  // Tells whether the choice is right, and opens the reasons.
  const settle = (question) => {
    const input = chosen(question);
    const letter = LETTERS[question.right];
    const right = input === question.inputs[question.right];
    question.settled = true;
    question.given = input ?? null;
    question.article.classList.add("settled");
    question.article.classList.toggle("missed", !right);
    if (input && !right) tell(input, "✗");
    tell(question.inputs[question.right], "✓");
    if (right) say(question.verdict, "Right.", "正解。");
    else if (input) say(question.verdict, `Wrong: ${letter} is right.`, `不正解。正解は ${letter}。`);
    else say(question.verdict, `Not answered: ${letter} is right.`, `未解答。正解は ${letter}。`);
    question.answer.open = true;
    if (input) remember(question, right);
    return right;
  };

  const focusOn = (question) => {
    question.article.scrollIntoView({ block: "start" });
    (chosen(question) ?? question.inputs[0]).focus({ preventScroll: true });
  };

  const next = (question) => {
    const here = [...practice.querySelectorAll(".question:not([hidden])")];
    const after = here.slice(here.indexOf(question.article) + 1).map(({ id }) => byId.get(id));
    const open = after.find((other) => !other.settled && !(run && chosen(other)));
    const before = run?.picked.find((other) => !chosen(other));
    if (open ?? before) focusOn(open ?? before);
    else if (run && !run.over) button("finish").focus();
  };

  const choose = (question, input) => {
    if (question.settled) return;
    input.checked = true;
    if (run && !run.over) {
      count();
      next(question);
    } else {
      settle(question);
      count();
    }
  };

  for (const question of questions) {
    const { article, inputs } = question;
    let browsing = false; // arrows move the choice; Enter, Space or a key answers
    article.addEventListener("pointerdown", () => (browsing = false));
    article.addEventListener("click", ({ target }) => {
      if (target.matches("input") && !browsing) choose(question, target);
    });
    article.addEventListener("change", ({ target }) => {
      if (question.settled) target.checked = false; // an answer stands
      if (question.given) question.given.checked = true;
      count();
    });
    article.addEventListener("keydown", (event) => {
      browsing = event.key.startsWith("Arrow");
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target !== article && !event.target.matches("input")) return;
      const key = event.key.toUpperCase();
      const at = Math.max("1234".indexOf(key), LETTERS.indexOf(key));
      const confirms = key === "ENTER" || key === " ";
      if (key.length === 1 && at >= 0) {
        inputs[at].focus({ preventScroll: true });
        choose(question, inputs[at]);
      } else if (confirms && question.settled) next(question);
      else if (confirms && event.target.checked) choose(question, event.target);
      else return;
      event.preventDefault();
    });
  }

  // ---------------------------------------------------------------- against the clock

  const tick = () => {
    const left = Math.max(0, Math.ceil((run.ends - Date.now()) / 1000));
    clock.textContent = minutes(left);
    if (!left) finish();
  };

  const start = () => {
    const picked = [...shown()];
    for (let i = picked.length - 1; i > 0; i -= 1) {
      const j = Math.floor(Math.random() * (i + 1));
      [picked[i], picked[j]] = [picked[j], picked[i]];
    }
    picked.length = Math.min(RUN, picked.length);
    const started = Date.now();
    run = { picked, started, ends: started + picked.length * SECONDS * 1000, over: false };
    only = null;
    picked.forEach(reset);
    runPlace.append(...picked.map(({ article }) => article));
    run.timer = setInterval(tick, 250);
    tick();
    show();
    focusOn(picked[0]);
  };

  const finish = () => {
    clearInterval(run.timer);
    run.over = true;
    const right = run.picked.filter(settle).length;
    const taken = Math.min(run.ends, Date.now()) - run.started;
    const time = minutes(Math.round(taken / 1000));
    const total = run.picked.length;
    show();
    say(tally, `${right} of ${total} right in ${time}`, `${total} 問中 ${right} 問正解、${time}`);
    form.scrollIntoView({ block: "nearest" });
    button("all").focus({ preventScroll: true });
  };

  const all = () => {
    for (const { section, article } of questions) section.append(article);
    run?.picked.forEach(reset);
    only?.forEach(reset);
    run = only = null;
    show();
    button("run").focus({ preventScroll: true });
  };

  // ---------------------------------------------------------------- the form

  const actions = {
    run: start,
    finish,
    all,
    again() {
      only = new Set(questions.filter(({ id }) => score.get(id) === false));
      only.forEach(reset);
      show();
      focusOn([...only][0]);
    },
    forget() {
      if (!confirm("Forget all answers that this browser stores? 解答の記録を消しますか？")) return;
      score = new Map();
      store(KEYS.score, null);
      questions.forEach(reset);
      only = null;
      show();
    },
  };
  form.addEventListener("click", ({ target }) => actions[target.closest("button")?.name]?.());
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", ({ target }) => {
    if (target.name === "practice-language") {
      practice.dataset.language = target.value;
      store(KEYS.language, target.value);
    } else show();
  });
  // A browser that goes back fills the fields in again.
  window.addEventListener("pageshow", () => {
    const language = practice.dataset.language;
    for (const input of form.querySelectorAll("input")) input.checked = input.value === language;
    questions.filter(({ settled }) => !settled).forEach(reset);
    show();
  });
}
