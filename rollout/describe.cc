#include "rollout/describe.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "rollout/text.h"

namespace reprise::rollout {
namespace {

namespace journal = ::reprise::journal::v1;
namespace sandbox = ::reprise::sandbox::v1;

// Text on one line, cut.
std::string Line(std::string_view text) {
  constexpr size_t kMaxShown = 200;
  std::string out;
  for (char c : text.substr(0, kMaxShown)) {
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return ToUtf8(out) + (text.size() > kMaxShown ? "..." : "");
}

std::string Describe(const journal::TrajectoryEntry& entry) {
  switch (entry.entry_case()) {
    case journal::TrajectoryEntry::kStart:
      return fmt::format("start    task {} group {} sample {} seed {} prompt {} tokens",
                         entry.start().task_id(), entry.start().group(), entry.start().sample(),
                         entry.start().seed(), entry.start().prompt_ids_size());
    case journal::TrajectoryEntry::kSampled: {
      const journal::SampledTokens& sampled = entry.sampled();
      return fmt::format("sampled  @{} ids {} logprobs {:.4f} version {}", sampled.position(),
                         fmt::join(sampled.ids(), " "), fmt::join(sampled.logprobs(), " "),
                         sampled.weight_version());
    }
    case journal::TrajectoryEntry::kFed:
      return fmt::format("fed      @{} {} tokens for {}", entry.fed().position(),
                         entry.fed().ids_size(), fmt::join(entry.fed().call_ids(), " "));
    case journal::TrajectoryEntry::kIssued:
      return fmt::format("call     {} {} {}", entry.issued().call_id(), entry.issued().tool(),
                         Line(entry.issued().arguments_json()));
    case journal::TrajectoryEntry::kDone: {
      const journal::CallDone& done = entry.done();
      std::string how =
          !done.error().empty()
              ? "not run"
              : fmt::format("{} {}", sandbox::Outcome_Name(done.outcome()), done.exit_code());
      return fmt::format("result   {} {}{}: {}", done.call_id(), how,
                         done.replayed() ? " (replayed)" : "", Line(done.result_text()));
    }
    case journal::TrajectoryEntry::kReward:
      if (!entry.reward().has_value()) {
        return fmt::format("reward   none: {}", Line(entry.reward().failure()));
      }
      return fmt::format("reward   {}", entry.reward().value());
    case journal::TrajectoryEntry::kSealed: {
      const journal::Sealed& sealed = entry.sealed();
      return fmt::format("sealed   {} {} {} {}", sealed.status(), sealed.stop_reason(),
                         sealed.failure_kind(), Line(sealed.failure()));
    }
    case journal::TrajectoryEntry::kResumed:
      return fmt::format("resumed  at token {} after {}, {} tokens prefilled again",
                         entry.resumed().at_token(), entry.resumed().cause(),
                         entry.resumed().prefill_tokens());
    default:
      return "unknown entry";
  }
}

}  // namespace

std::string DescribeEntry(uint64_t index, const journal::TrajectoryEntry& entry) {
  std::string line = fmt::format("{:5} {}", index, Describe(entry));
  while (line.ends_with(' ')) line.pop_back();
  return line;
}

}  // namespace reprise::rollout
