// Sphinx's search, made to know this theme: it reads the article and not the buttons
// above it, and a result leads to the section that its words stand in.
"use strict"

const asked = () =>
  new URLSearchParams(location.search).get("q").toLowerCase().trim()

// What has the very name that was asked for comes first, pages of lists last; and a
// page is not found twice, once by its name and once by its words.
Scorer.score = (result) => {
  const [docname, title, , , score] = result
  const [page, section] = title.replace(/^[\d.]+\s+/, "").split(" > ")
  if (section === page) result[1] = title.split(" > ")[0]
  if ((section ?? page).toLowerCase() === asked()) return score + 30
  const lists = ["book/claims", "book/bibliography", "book/index"]
  return lists.includes(docname) ? score / 4 : score
}

Search.article = (html) => {
  const page = new DOMParser().parseFromString(html, "text/html")
  const unread = ".headerlink, .needs, script, style, .katex-mathml, details.hide, .toctree-wrapper"
  page.querySelectorAll(unread).forEach((element) => element.remove())
  return page.querySelector("article.bd-article")
}

// The words of the smallest section that has most of what was asked, and its id.
Search.best = (article, terms, anchor) => {
  if (!article) return { text: "", id: "" }
  const sections = [...article.querySelectorAll("section[id]")]
  const own = (section) => {
    const copy = section.cloneNode(true)
    copy.querySelectorAll("section").forEach((inner) => inner.remove())
    return copy.textContent.replace(/\s+/g, " ").trim()
  }
  const given = anchor && sections.find((section) => `#${section.id}` === anchor)
  if (given) return { text: own(given), id: given.id }
  let best = { text: own(article) || own(sections[0] ?? article), id: "", points: 0 }
  for (const section of sections) {
    const text = own(section)
    const low = text.toLowerCase()
    const title = section.firstElementChild.textContent.toLowerCase()
    const points = terms.reduce((sum, term) => {
      const found = Math.min(low.split(term).length - 1, 5)
      return sum + (found && 10 + found) + (title.includes(term) ? 5 : 0)
    }, 0)
    const first = section === sections[0]  // the page itself
    if (points > best.points) best = { text, id: first ? "" : section.id, points }
  }
  return best
}

Search.makeSearchSummary = (html, asCut, anchor) => {
  const terms = Search.typed(asCut)
  const summary = document.createElement("p")
  summary.className = "context"
  const { text, id } = Search.best(Search.article(html), terms, anchor)
  const low = text.toLowerCase()
  const whole = low.includes(asked()) ? [asked()] : terms
  const places = whole.map((term) => low.indexOf(term)).filter((at) => at >= 0)
  const start = Math.max(Math.min(...places, text.length) - 100, 0)
  const cut = places.length ? start : 0
  const [before, after] = [cut ? "… " : "", text.length > cut + 240 ? " …" : ""]
  summary.textContent = before + text.slice(cut, cut + 240).trim() + after
  // Sphinx puts the summary beside the link once this function is over.
  queueMicrotask(() => {
    const link = summary.parentElement?.querySelector("a")
    if (link && !link.hash && id) link.hash = id
  })
  return summary
}
