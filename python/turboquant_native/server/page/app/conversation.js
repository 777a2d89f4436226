// The messages of one chat. The newest are drawn at once, older ones while the browser is idle; the view stays where the reader left it.
import { path } from "./chat.js";
import { IconButton } from "./icons.js";
import { Message } from "./message.js";
import { Component, html } from "./preact.js";
import { store } from "./store.js";
import { whole } from "./text.js";

const FIRST = 16;
const STEP = 8;
const BOTTOM = 8; // pixels that still count as the bottom

const whenIdle = globalThis.requestIdleCallback ?? ((call) => setTimeout(call, 60));
const notIdle = globalThis.cancelIdleCallback ?? clearTimeout;

export class Conversation extends Component {
  state = { shown: FIRST, pinned: true };
  pinned = true;
  top = 0;

  componentDidMount() {
    this.sizes = new ResizeObserver(() => this.pinned && this.toEnd());
    this.sizes.observe(this.list);
    this.sizes.observe(this.scroller);
    this.toEnd();
    this.drawOlder();
  }

  componentWillUnmount() {
    this.sizes.disconnect();
    notIdle(this.idle);
  }

  drawOlder() {
    if (this.state.shown >= path(this.props.chat).length) return;
    this.idle = whenIdle(() => {
      const fromEnd = this.scroller.scrollHeight - this.scroller.scrollTop;
      this.setState({ shown: this.state.shown + STEP }, () => {
        if (!this.pinned) this.scroller.scrollTop = this.scroller.scrollHeight - fromEnd;
        this.drawOlder();
      });
    });
  }

  componentDidUpdate(before) {
    if (this.props.busy && !before.busy) this.pin();
  }

  toEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  pin() {
    this.release(true);
    this.toEnd();
  }

  release(pinned) {
    this.pinned = pinned;
    if (this.state.pinned !== pinned) this.setState({ pinned });
  }

  // Scrolling up lets go of the end; reaching it takes hold again.
  onScroll = ({ target }) => {
    const { scrollTop, scrollHeight, clientHeight } = target;
    if (scrollHeight - scrollTop - clientHeight < BOTTOM) this.release(true);
    else if (scrollTop < this.top) this.release(false);
    this.top = scrollTop;
  };

  onWheel = ({ deltaY }) => {
    if (deltaY < 0 && this.scroller.scrollHeight > this.scroller.clientHeight) this.release(false);
  };

  render({ chat, busy }, { shown, pinned }) {
    const messages = path(chat);
    const versions = countVersions(chat);
    return html`
      <div class="conversation">
        <div class="scroller" ref=${(node) => (this.scroller = node)} onScroll=${this.onScroll} onWheel=${this.onWheel} tabindex="-1">
          <div class="messages" role="log" aria-busy=${busy} ref=${(node) => (this.list = node)}>
            ${!messages.length && html`<${Welcome} />`}
            ${messages.slice(-shown).map((message) => html`
              <${Message} key=${message.id} message=${message} chat=${chat} last=${message.id === chat.leaf} versions=${versions.get(versionKey(message))} />
            `)}
          </div>
        </div>
        ${!pinned && html`<${IconButton} name="down" label="To the newest message" class="icon-button to-end" onClick=${() => this.pin()} />`}
      </div>
    `;
  }
}

const versionKey = ({ parent, role }) => `${parent} ${role}`;

function countVersions(chat) {
  const counts = new Map();
  for (const message of chat.messages) counts.set(versionKey(message), (counts.get(versionKey(message)) ?? 0) + 1);
  return counts;
}

const Welcome = () => html`
  <div class="welcome">
    <img src="icon.svg" alt="" width="44" height="44" />
    <h1>What would you like to know?</h1>
    <p>
      Answers come from ${store.model ? html`<b>${store.model}</b>` : "the model"} on this server${store.context ? `, up to ${whole(store.context)} tokens a chat` : ""}.
      Chats stay in this browser.
    </p>
  </div>
`;
