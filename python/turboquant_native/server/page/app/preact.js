export { Component, html, render, useEffect, useLayoutEffect, useRef, useState } from "../vendor/htm/standalone.module.js";
