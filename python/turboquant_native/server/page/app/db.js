// Chats in the browser's IndexedDB: heads (id, title, dates) are read at the start, a body (messages, leaf) when its chat is opened.
// Where the browser refuses storage, chats live as long as the page; `persistent` says which.

const opened = new Promise((resolve) => {
  try {
    const request = indexedDB.open("turboquant", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("heads", { keyPath: "id" });
      request.result.createObjectStore("bodies", { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => resolve(null);
  } catch {
    resolve(null);
  }
});

const memory = new Map();

export const persistent = async () => (await opened) !== null;

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const headOf = ({ id, title, created, updated }) => ({ id, title, created, updated });

export async function heads() {
  const db = await opened;
  return db ? done(db.transaction("heads").objectStore("heads").getAll()) : [...memory.values()].map(headOf);
}

export async function load(id) {
  const db = await opened;
  if (!db) return memory.get(id) ?? null;
  const stores = db.transaction(["heads", "bodies"]);
  const [head, body] = await Promise.all([done(stores.objectStore("heads").get(id)), done(stores.objectStore("bodies").get(id))]);
  return head && body ? { ...head, ...body } : null;
}

export const loadAll = async () => (await Promise.all((await heads()).map((head) => load(head.id)))).filter(Boolean);

export async function save(chat) {
  const db = await opened;
  if (!db) return void memory.set(chat.id, chat);
  return write(db, (names) => {
    names.heads.put(headOf(chat));
    names.bodies.put({ id: chat.id, messages: chat.messages, leaf: chat.leaf });
  });
}

export async function remove(id) {
  const db = await opened;
  if (!db) return void memory.delete(id);
  return write(db, (names) => {
    names.heads.delete(id);
    names.bodies.delete(id);
  });
}

function write(db, change) {
  const transaction = db.transaction(["heads", "bodies"], "readwrite");
  change({ heads: transaction.objectStore("heads"), bodies: transaction.objectStore("bodies") });
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
  });
}
