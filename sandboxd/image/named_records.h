// What a store of images knows of each under its name: a small JSON file a name, in DIR/names. A
// record is there whole or not at all.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "reprise/sandbox/v1/sandbox.pb.h"

namespace reprise::sandboxd {

// The members "name", "digest", "size" and "layers" (1 where it is missing) are the image; all
// strings and numbers are in the maps.
struct NamedRecord {
  ::reprise::sandbox::v1::Image image;
  std::map<std::string, std::string> texts;
  std::map<std::string, uint64_t> numbers;

  // "" when there is none.
  std::string Text(const std::string& key) const;
};

class NamedRecords {
 public:
  // `kind` is what messages call an image of the store; `remedy` ends the message for a record that
  // cannot be read: "import its image again"; `bytes_max`: of one record.
  NamedRecords(const std::string& dir, std::string kind, std::string remedy, uint64_t bytes_max)
      : dir_(dir + "/names"),
        kind_(std::move(kind)),
        remedy_(std::move(remedy)),
        bytes_max_(bytes_max) {}

  // The file of a name.
  std::string Path(const std::string& name) const;
  // Those that are there, in no order.
  std::vector<std::string> Paths() const;
  // NOT_FOUND; Malformed when its name or digest is none.
  absl::StatusOr<NamedRecord> Read(const std::string& path) const;
  // DATA_LOSS with the remedy.
  absl::Status Malformed(const std::string& path) const;
  // NOT_FOUND when there is none.
  absl::Status Remove(const std::string& name) const;

 private:
  const std::string dir_, kind_, remedy_;
  const uint64_t bytes_max_;
};

}  // namespace reprise::sandboxd
