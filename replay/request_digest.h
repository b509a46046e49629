// What of a request says what runs: an ordered list of named fields, the digest over it, and the
// first field in which two requests differ. Format: replay/FORMAT.md.
#pragma once

#include <string>

#include "reprise/sandbox/v1/sandbox.pb.h"

namespace reprise::replay {

// Digest of a request whose secrets are already redacted.
std::string RedactedDigest(const ::reprise::sandbox::v1::ExecuteRequest& request);

// "<field> differs: was <stored>, is <asked>", values shortened; "" when none differs. Both
// redacted.
std::string FirstDifference(const ::reprise::sandbox::v1::ExecuteRequest& stored,
                            const ::reprise::sandbox::v1::ExecuteRequest& asked);

}  // namespace reprise::replay
