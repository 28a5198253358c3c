// Gorget: what pages gain where there is script. All of it works without.
(() => {
  "use strict";
  const main = document.querySelector("main");
  if (!main) return;
  const base = document.documentElement.dataset.base || "";

  // Regions named by data-live are fetched again when something happened, twice a second at most.
  let wanted = false, busy = false, last = 0, timer = 0;
  const refresh = async () => {
    timer = 0;
    if (document.hidden) { wanted = true; return; }
    wanted = false;
    busy = true;
    last = Date.now();
    try {
      const reply = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (reply.ok) {
        const fresh = new DOMParser().parseFromString(await reply.text(), "text/html");
        for (const old of document.querySelectorAll("[data-live]")) {
          const now = fresh.querySelector(`[data-live="${CSS.escape(old.dataset.live)}"]`);
          // What somebody types in or has the focus on stays.
          if (!now || old.contains(document.activeElement) || old.isEqualNode(now)) continue;
          old.replaceWith(document.adoptNode(now));
        }
        filter();
      }
    } catch { /* The next event tries again. */ }
    busy = false;
    if (wanted) plan();
  };
  const plan = () => {
    wanted = true;
    if (!busy && !timer) timer = setTimeout(refresh, Math.max(0, last + 500 - Date.now()));
  };
  if (main.dataset.events !== undefined && window.EventSource) {
    let source = null;
    // The first word tells the state of things, which the page shows already, but for the events told after it; a
    // later one, that some was missed.
    let known = false;
    const open = () => {
      if (source || document.hidden) return;
      source = new EventSource(`${base}/api/events${main.dataset.events}`);
      source.addEventListener("status", () => { if (known) plan(); known = true; });
      for (const name of ["jobset-changed", "builds", "daemon", "evaluation-started", "evaluation-ended",
        "builds-queued", "build-started", "build-ended", "worker-joined", "worker-left", "overflow"]) {
        source.addEventListener(name, plan);
      }
    };
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) { source?.close(); source = null; } else { open(); plan(); }
    });
    addEventListener("pagehide", () => { source?.close(); source = null; });
    open();
  }

  // A log that grows: lines come escaped and coloured from the server. Nobody reads it in a tab that is hidden, and
  // each reader there would take one of the few connections that a browser has for one host.
  const log = document.querySelector("pre[data-log]");
  if (log && window.EventSource) {
    const most = 20000;
    let source = null, over = false, place = log.dataset.from, status = log.dataset.status;
    const note = document.createElement("p");
    note.className = "box warn";
    note.textContent = "What came before is no longer shown; the raw log has all.";
    const add = (html) => {
      const piece = document.createElement("template");
      piece.innerHTML = html;
      // A line that was yet to be ended comes again as a whole.
      document.getElementById(piece.content.firstElementChild?.id)?.remove();
      log.append(piece.content);
      if (log.childElementCount <= most) return;
      while (log.childElementCount > most) log.firstChild.remove();
      log.before(note);
    };
    const follow = () => {
      if (source || over || document.hidden) return;
      source = new EventSource(`${log.dataset.log}?from=${place}`);
      const hear = (name, act) => source.addEventListener(name, (event) => {
        place = event.lastEventId || place;
        act(event);
      });
      // Another try writes the log anew.
      hear("begin", () => { log.textContent = ""; note.remove(); });
      hear("log", (event) => {
        const end = innerHeight + scrollY >= document.body.scrollHeight - 40;
        add(JSON.parse(event.data).html);
        if (end) scrollTo(0, document.body.scrollHeight);
      });
      hear("status", (event) => {
        const now = JSON.parse(event.data).status;
        if (now !== status) { status = now; plan(); }
      });
      hear("end", () => { over = true; leave(); plan(); });
    };
    const leave = () => { source?.close(); source = null; };
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) { leave(); } else { follow(); if (wanted) plan(); }
    });
    addEventListener("pagehide", leave);
    addEventListener("pageshow", follow);
    follow();
  }

  // Rows are filtered while somebody types; sending the form asks the server.
  const filter = () => {
    for (const field of document.querySelectorAll("input[data-filter]")) {
      const part = field.value.trim().toLowerCase();
      for (const row of document.querySelectorAll(field.dataset.filter)) {
        row.hidden = part !== "" && !row.textContent.toLowerCase().includes(part);
      }
    }
  };
  document.addEventListener("input", (event) => {
    if (event.target.dataset.filter) filter();
  });
})();
