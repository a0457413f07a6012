// The API reference: Swagger UI over the schema that this server publishes.
"use strict";
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#reference",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  persistAuthorization: false, // a key stays on this page and is forgotten with it
  validatorUrl: null, // nothing is sent elsewhere
});
