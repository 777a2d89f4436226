import { html } from "./preact.js";

const PATHS = {
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h10v10H9zM15 9V5H5v10h4",
  check: "M5 12.5l4.5 4.5L19 7.5",
  edit: "M4 20l1-4L16.5 4.5l3 3L8 19l-4 1zM14 7l3 3",
  again: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10.5 11v5M13.5 11v5",
  left: "M14.5 6l-6 6 6 6",
  right: "M9.5 6l6 6-6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  sidebar: "M4 5h16v14H4zM9.5 5v14",
  sliders: "M4 8h8M17 8h3M14.5 5.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5zM4 16h3M12 16h8M9.5 13.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5z",
  clip: "M18 11l-6.5 6.5a3.5 3.5 0 0 1-5-5L13.5 5.5a2.3 2.3 0 0 1 3.3 3.3L10 15.5a1 1 0 0 1-1.5-1.5L14 8.5",
  file: "M7 4h7l4 4v12H7zM14 4v4h4",
  info: "M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16zM12 11v5M12 8v.2",
  close: "M6 6l12 12M18 6L6 18",
  export: "M12 15V4M8 8l4-4 4 4M5 14v6h14v-6",
  tool: "M14.5 5.5a4.5 4.5 0 0 0-5.6 5.6L4 16v4h4l4.9-4.9a4.5 4.5 0 0 0 5.6-5.6L16 12l-4-4z",
  search: "M10.5 4.5a6 6 0 1 0 0 12 6 6 0 0 0 0-12zM15 15l5 5",
};

export const icon = (name) => html`
  <svg class="icon" viewBox="0 0 24 24" aria-hidden="true" fill="none" stroke="currentColor" stroke-width="1.7" stroke-linecap="round" stroke-linejoin="round">
    <path d=${PATHS[name]} />
  </svg>
`;

export const IconButton = ({ name, label, ...rest }) => html`
  <button type="button" class="icon-button" aria-label=${label} title=${label} ...${rest}>${icon(name)}</button>
`;
