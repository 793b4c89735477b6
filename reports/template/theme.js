"use strict";

// Light, dark, or the system's theme. Set before the first paint; stored if the browser allows it for local files.
const THEMES = ["auto", "light", "dark"];
function storeTheme(theme) { try { localStorage.setItem("theme", theme); } catch { /* no storage: the choice is lost */ } }
function storedTheme() { try { return localStorage.getItem("theme"); } catch { return null; } }
function show(theme) { document.documentElement.dataset.theme = THEMES.includes(theme) ? theme : "auto"; }
show(storedTheme());
