// Compiles the component App.vue of a folder to App.js: node build-vue.js FOLDER

import { readFileSync, writeFileSync } from "node:fs";
import { compileScript, parse } from "@vue/compiler-sfc";

const folder = process.argv[2];
const { descriptor, errors } = parse(readFileSync(`${folder}/App.vue`, "utf8"));
if (errors.length > 0) throw errors[0];
const { content } = compileScript(descriptor, { id: "app", inlineTemplate: true });
writeFileSync(`${folder}/App.js`, content);
