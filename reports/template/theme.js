"use strict";

// Light, dark, or what the system has: chosen before the first paint, kept where the browser lets a file keep it.
const THEMES = ["auto", "light", "dark"];
function keep(theme) { try { localStorage.setItem("theme", theme); } catch { /* a page without storage forgets */ } }
function kept() { try { return localStorage.getItem("theme"); } catch { return null; } }
function show(theme) { document.documentElement.dataset.theme = THEMES.includes(theme) ? theme : "auto"; }
show(kept());
