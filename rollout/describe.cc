#include "rollout/describe.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <utility>

#include "rollout/render.h"
#include "rollout/text.h"

namespace reprise::rollout {
namespace {

namespace journal = ::reprise::journal::v1;
namespace sandbox = ::reprise::sandbox::v1;

constexpr size_t kMaxShown = 200;       // bytes of a text
constexpr size_t kMaxTurnShown = 2000;  // of what the model said

// Text on one line, cut.
std::string Line(std::string_view text, size_t max_shown = kMaxShown) {
  std::string out;
  for (char c : text.substr(0, max_shown)) {
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return ToUtf8(out) + (text.size() > max_shown ? "..." : "");
}

std::string Describe(const journal::TrajectoryEntry& entry) {
  switch (entry.entry_case()) {
    case journal::TrajectoryEntry::kStart:
      return fmt::format(
          "start    task {} group {} sample {} seed {} prompt {} tokens{}", entry.start().task_id(),
          entry.start().group(), entry.start().sample(), entry.start().seed(),
          entry.start().prompt_ids_size(),
          entry.start().has_fork()
              ? fmt::format(", branched from {} at step {}, {} tokens shared",
                            entry.start().fork().parent_id(), entry.start().fork().at_step(),
                            entry.start().fork().shared_tokens())
              : "");
    case journal::TrajectoryEntry::kFed:
      return fmt::format("fed      @{} {} tokens for {}", entry.fed().position(),
                         entry.fed().ids_size(), fmt::join(entry.fed().call_ids(), " "));
    case journal::TrajectoryEntry::kIssued:
      return fmt::format("call     {} {} {}", entry.issued().call_id(), entry.issued().tool(),
                         Line(entry.issued().arguments_json()));
    case journal::TrajectoryEntry::kDone: {
      const journal::CallDone& done = entry.done();
      std::string how =
          done.outcome() == sandbox::OUTCOME_UNSPECIFIED
              ? "not run"
              : fmt::format("{} {}", sandbox::Outcome_Name(done.outcome()), done.exit_code());
      return fmt::format("result   {} {}{}: {}", done.call_id(), how,
                         done.replayed() ? " (replayed)" : "",
                         Line(IsPlatformFailure(done.outcome()) && !done.error().empty()
                                  ? done.error()
                                  : done.result_text()));
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
    case journal::TrajectoryEntry::kSwitched:
      return fmt::format("switched to weight version {}, KV of {} tokens kept",
                         entry.switched().weight_version(), entry.switched().kept_tokens());
    case journal::TrajectoryEntry::kExchange:
      return fmt::format("request  {} answered as {} from @{} on",
                         entry.exchange().request_id().empty() ? "without an id"
                                                               : entry.exchange().request_id(),
                         entry.exchange().answer_id(), entry.exchange().begin());
    case journal::TrajectoryEntry::kAnswered:
      return fmt::format("answered {}", entry.answered().finish_reason());
    default:
      return "unknown entry";
  }
}

// Tokens that were sampled one after another, as one line.
std::string DescribeSampled(absl::Span<const journal::TrajectoryEntry> entries,
                            const engine::Tokenizer* tokenizer) {
  std::vector<int32_t> ids;
  double logprobs = 0;
  for (const journal::TrajectoryEntry& entry : entries) {
    const journal::SampledTokens& sampled = entry.sampled();
    ids.insert(ids.end(), sampled.ids().begin(), sampled.ids().end());
    for (float logprob : sampled.logprobs()) logprobs += logprob;
  }
  const journal::SampledTokens& first = entries[0].sampled();
  std::string line =
      fmt::format("sampled  @{} {} tokens, logprob {:.4f} a token, version {}", first.position(),
                  ids.size(), logprobs / static_cast<double>(ids.size()), first.weight_version());
  if (tokenizer == nullptr) return line;
  return fmt::format("{}: {}", line, Line(tokenizer->Decode(ids), kMaxTurnShown));
}

bool Continues(const journal::TrajectoryEntry& last, const journal::TrajectoryEntry& next) {
  return last.has_sampled() && next.has_sampled() &&
         last.sampled().weight_version() == next.sampled().weight_version();
}

}  // namespace

std::vector<std::string> DescribeLog(absl::Span<const journal::TrajectoryEntry> entries,
                                     const engine::Tokenizer* tokenizer) {
  std::vector<std::string> lines;
  for (size_t begin = 0, end = 0; begin < entries.size(); begin = end) {
    end = begin + 1;
    while (end < entries.size() && Continues(entries[end - 1], entries[end])) ++end;
    std::string line =
        fmt::format("{:5} {}", begin,
                    entries[begin].has_sampled()
                        ? DescribeSampled(entries.subspan(begin, end - begin), tokenizer)
                        : Describe(entries[begin]));
    while (line.ends_with(' ')) line.pop_back();
    lines.push_back(std::move(line));
  }
  return lines;
}

}  // namespace reprise::rollout
