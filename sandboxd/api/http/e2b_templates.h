// E2B's templates: built from a known image by steps, as its SDKs ask for it (v2 and v3 of the
// routes), and what a sandbox begins with that is made from one.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "sandboxd/api/http/e2b.h"
#include "sandboxd/api/http/e2b_create.h"
#include "sandboxd/api/http/template_build.h"

namespace reprise::sandboxd::http {

// `tls`: whether clients reach this port by https.
void AddTemplateRoutes(const Surface& surface, TemplateBuilds* builds, bool tls, Router* router);

// Turns an order of a template that was built here into one of its image, with its variables,
// directory and user; `built` gets the template. NOT_FOUND leaves the order as it is.
absl::Status ApplyTemplate(const TemplateStore& store, CreateOrder* order,
                           TemplateStore::Template* built);
// Runs the template's start command in a new sandbox, and waits until it is ready. Blocks.
absl::Status StartTemplate(const Surface& surface, const std::string& sandbox_id,
                           const TemplateStore::Template& built);

}  // namespace reprise::sandboxd::http
