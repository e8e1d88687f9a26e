// Writes the types of an OpenAPI document: `node typescript_types.mjs URL FILE`. Binary data become Blobs.

import { writeFile } from "node:fs/promises";
import openapiTS, { astToString } from "openapi-typescript";
import ts from "typescript";

const [url, file] = process.argv.slice(2);
const blob = ts.factory.createTypeReferenceNode("Blob");
const transform = (schema) => (schema.format === "binary" ? blob : undefined);
await writeFile(file, astToString(await openapiTS(new URL(url), { transform })));
