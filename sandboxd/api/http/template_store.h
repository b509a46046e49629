// Templates that were built over HTTP, the images of their steps, and the archives that clients
// uploaded for them. All of it outlives the daemon.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "reprise/envd/v1/template.pb.h"
#include "storage/store.h"

namespace reprise::sandboxd::http {

// The column families that a TemplateStore needs, for StoreOptions::families.
inline constexpr char kTemplateFamily[] = "http_templates";
inline constexpr char kStepFamily[] = "http_build_steps";

class TemplateStore {
 public:
  using Template = ::reprise::envd::v1::Template;
  // `store` outlives this. `uploads_dir` is made when it is first needed.
  TemplateStore(storage::Store* store, storage::Family templates, storage::Family steps,
                std::string uploads_dir)
      : store_(store), templates_(templates), steps_(steps), uploads_dir_(std::move(uploads_dir)) {}

  // The id that clients use in paths for a template of this name, whatever its tag.
  static std::string IdOf(std::string_view name);
  // "NAME:TAG" as both; the tag is "default" where there is none.
  static std::pair<std::string, std::string> SplitTag(std::string_view name);

  // By NAME, NAME:TAG, NAME:BUILD_ID or id. NOT_FOUND.
  absl::StatusOr<Template> Find(std::string_view name_or_id) const;
  // Durable on return.
  absl::Status Put(const Template& built);
  // With all its tags. NOT_FOUND.
  absl::Status Remove(std::string_view name_or_id);
  // The tags of a template, each with its newest build. NOT_FOUND.
  absl::StatusOr<std::vector<Template>> Tags(std::string_view name_or_id) const;

  // The image after a step, "" when there is none. `digest`: of the step and all before it, and of
  // what they began with.
  absl::StatusOr<std::string> StepImage(std::string_view digest) const;
  absl::Status PutStepImage(std::string_view digest, const std::string& image);

  // Archives, by the hash that their client gave them (64 hexadecimal digits; INVALID_ARGUMENT).
  absl::StatusOr<std::string> UploadPath(std::string_view hash) const;
  bool HasUpload(std::string_view hash) const;
  // Whole or not at all. `next` gives pieces, "" at the end.
  absl::Status SaveUpload(std::string_view hash,
                          const std::function<absl::StatusOr<std::string>()>& next) const;

 private:
  storage::Store* const store_;
  const storage::Family templates_, steps_;
  const std::string uploads_dir_;
};

}  // namespace reprise::sandboxd::http
