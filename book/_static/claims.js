// The claims page: leaves the claims that hold every word typed, in the chapter and the
// kind of page chosen. The page is whole without this script, which shows the form.
{
  const form = document.querySelector("form.claims-filter");
  const total = document.querySelector("p.total");
  const every = total.textContent;
  const sections = [...document.querySelectorAll("section.claims-of")];
  const claims = [...document.querySelectorAll("section.claims-of li")].map((row) => ({
    row,
    section: row.closest("section"),
    text: row.textContent.toLowerCase(),
  }));
  const value = (name) => form.querySelector(`#claims-${name}`)?.value ?? "";

  const filter = () => {
    const words = value("words").toLowerCase().split(/\s+/);
    const classes = [value("kind"), value("chapter") && `chapter-${value("chapter")}`];
    const left = claims.filter(
      ({ section, text }) =>
        classes.every((name) => !name || section.classList.contains(name)) &&
        words.every((word) => text.includes(word)),
    );
    const narrowed = left.length < claims.length;
    const rows = new Set(left.map(({ row }) => row));
    const shown = new Set(left.map(({ section }) => section));
    for (const { row } of claims) row.hidden = !rows.has(row);
    for (const section of sections) {
      section.hidden = narrowed && !shown.has(section);
      // And the line that leads there from "On this page".
      const line = document.querySelector(`.page-toc a[href="#${section.id}"]`);
      line?.closest("li").toggleAttribute("hidden", section.hidden);
    }
    total.textContent = narrowed ? `${rows.size} of ${every}` : every;
  };

  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  // A browser that goes back fills the fields in again.
  window.addEventListener("pageshow", filter);
}
