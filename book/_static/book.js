// What a page needs a script for, and reads without: the list of sections follows the
// reader, the button of the colours tells its state, and on paper every answer is open.
document.addEventListener("DOMContentLoaded", () => {
  const list = document.querySelector("#pst-secondary-sidebar")
  const links = [...(list?.querySelectorAll("a.nav-link[href^='#']") ?? [])]
  const sections = links.map(({ hash }) =>
    document.getElementById(decodeURIComponent(hash.slice(1))))
  const follow = () => {
    // Where the list is hidden, to look for the section would draw them all.
    if (!list.checkVisibility({ visibilityProperty: true })) return
    const begun = (section) => section?.getBoundingClientRect().top < innerHeight / 3
    const here = links[sections.findLastIndex(begun)]
    links.forEach((link) => link.classList.toggle("active", link === here))
    if (!here) return
    const pane = list.getBoundingClientRect()
    const entry = here.getBoundingClientRect()
    if (entry.top < pane.top || entry.bottom > Math.min(pane.bottom, innerHeight)) {
      list.scrollTop += entry.top - pane.top - pane.height / 3
    }
  }
  if (links.length) {
    addEventListener("click", () => requestAnimationFrame(follow)) // may open the list
    addEventListener("scroll", () => requestAnimationFrame(follow), { passive: true })
    follow()
  }

  // Of what was searched for, Sphinx marks every word of the page: hundreds of "norm".
  setTimeout(() => {
    const section = document.getElementById(decodeURIComponent(location.hash.slice(1)))
    for (const word of document.querySelectorAll("span.highlighted")) {
      if (word.closest("#search-results")) continue
      if (!section?.contains(word)) word.replaceWith(...word.childNodes)
    }
  }, 50)

  // The button of the colours says which are shown; its name changes while it has focus.
  const root = document.documentElement
  const say = () => document.querySelectorAll(".theme-switch-button").forEach(
    (button) => button.setAttribute("aria-label", `Color mode: ${root.dataset.mode}`))
  new MutationObserver(say).observe(root, { attributeFilter: ["data-mode"] })
  say()

  // The tab key stops at code that scrolls. The theme asks so of what is drawn; this, of
  // a fold that opens and of a section that comes near.
  for (const shown of ["toggle", "contentvisibilityautostatechange"]) {
    document.addEventListener(shown, ({ target, skipped }) => {
      if (skipped || target.open === false) return
      for (const code of target.querySelectorAll("pre")) {
        if (!code.checkVisibility()) continue
        code.tabIndex = code.scrollWidth > code.clientWidth ? 0 : -1
      }
    }, true)
  }

  let opened = []
  addEventListener("beforeprint", () => {
    const answers = document.querySelectorAll("details.sd-dropdown:not([open])")
    opened = [...answers]
    opened.forEach((answer) => (answer.open = true))
  })
  addEventListener("afterprint", () => {
    opened.forEach((answer) => (answer.open = false))
  })
})
