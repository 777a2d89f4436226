// Markdown to sanitized HTML, block by block. Raw HTML in the source stays text; images become links, so that nothing is fetched.
import "../vendor/dompurify/purify.min.js";
import { Lexer, Parser, Renderer } from "../vendor/marked/marked.esm.js";
import { highlighted } from "./highlight.js";
import { Component, html } from "./preact.js";

const purify = globalThis.DOMPurify;

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escape = (text) => text.replace(/[&<>"']/g, (c) => ESCAPES[c]);

const SAFE_LINK = /^(?:https?:\/\/|mailto:)/i;

class PageRenderer extends Renderer {
  html({ text, block }) {
    if (/^<br *\/?>$/i.test(text)) return "<br>"; // the one tag that models put into tables
    return block ? `<p>${escape(text.trim()).replaceAll("\n", "<br>")}</p>` : escape(text);
  }

  link({ href, tokens }) {
    const label = this.parser.parseInline(tokens);
    return SAFE_LINK.test(href) ? `<a href="${escape(href)}">${label}</a>` : label;
  }

  image({ href, text }) {
    const label = escape(text || href);
    return SAFE_LINK.test(href) ? `<a href="${escape(href)}">${label}</a>` : label;
  }

  code({ text, lang }) {
    const language = (lang ?? "").trim().split(/\s/)[0];
    const head = `<div class="code-head"><span>${escape(language || "text")}</span><button type="button" class="code-copy">Copy</button></div>`;
    return `<div class="code">${head}<pre><code>${highlighted(text, language) ?? escape(text)}</code></pre></div>`;
  }

  table(token) {
    return `<div class="table">${super.table(token)}</div>`;
  }
}

const OPTIONS = { gfm: true, breaks: true, renderer: new PageRenderer() };

const ALLOWED = {
  ALLOWED_TAGS: (
    "a blockquote br button code del div em h1 h2 h3 h4 h5 h6 hr input li ol p pre span strong table tbody td th thead tr ul"
  ).split(" "),
  ALLOWED_ATTR: ["align", "checked", "class", "disabled", "href", "rel", "start", "target", "type"],
  ALLOWED_URI_REGEXP: SAFE_LINK,
  ADD_URI_SAFE_ATTR: ["align", "checked", "disabled", "rel", "start", "target", "type"], // the expression above is for links alone
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_TRUSTED_TYPE: true,
};

purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer");
});

const lexer = (links) => {
  const made = new Lexer(OPTIONS);
  Object.assign(made.tokens.links, links);
  return made;
};

// The blocks of one message. While it grows, a block followed by two others is settled: it is parsed and sanitized once,
// and each frame looks at the unsettled end alone. (Two, because `***` after a paragraph is a rule until it becomes bold text.)
export class Blocks {
  #source = "";
  #settled = [];
  #end = 0;
  #links = {};
  #known = new Map();

  update(text, live) {
    const source = text.replace(/\r\n?/g, "\n");
    if (!live || !source.startsWith(this.#source)) this.#reset();
    this.#source = source;
    const parser = lexer(this.#links);
    const tokens = parser.lex(source.slice(this.#end));
    Object.assign(this.#links, parser.tokens.links);
    const shown = tokens.filter((token) => token.type !== "space");
    const fresh = live ? this.#settle(tokens, shown.at(-2)) : 0;
    return [...this.#settled, ...shown.slice(fresh).map((token) => this.#render(token))];
  }

  #reset() {
    this.#settled = [];
    this.#end = 0;
    this.#links = {};
  }

  // Settles what stands before `open`; returns how many blocks that were.
  #settle(tokens, open) {
    const before = this.#settled.length;
    for (const token of tokens.slice(0, Math.max(0, tokens.indexOf(open)))) {
      this.#end += token.raw.length;
      if (token.type === "space") continue;
      const made = this.#render(token);
      this.#settled.push(made);
      this.#known.set(token.raw, made);
    }
    return this.#settled.length - before;
  }

  // A settled source gives the same object again, so that the page's elements (and a selection in them) stay as they are.
  #render(token) {
    const known = this.#known.get(token.raw);
    if (known && !Object.keys(this.#links).length) return known;
    return purify.sanitize(new Parser(OPTIONS).parse([token]), ALLOWED);
  }
}

class Block extends Component {
  shouldComponentUpdate(next) {
    return next.html !== this.props.html;
  }

  render({ html: trusted }) {
    return html`<div class="block" dangerouslySetInnerHTML=${{ __html: trusted }}></div>`;
  }
}

export class Markdown extends Component {
  blocks = new Blocks();

  shouldComponentUpdate(next) {
    return next.text !== this.props.text || next.live !== this.props.live;
  }

  render({ text, live }) {
    return html`<div class="markdown">${this.blocks.update(text, live).map((block, i) => html`<${Block} key=${i} html=${block} />`)}</div>`;
  }
}
