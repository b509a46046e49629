// One step: plan (what is fed once for several, what is guessed), passes through the model,
// samples, and guesses for the next step.
#include <algorithm>
#include <map>
#include <utility>

#include "base/status_macros.h"
#include "engine/communicator.h"
#include "engine/engine_impl.h"
#include "engine/sampler.h"

namespace reprise::engine {
namespace {

// Tokens in one pass; longer steps are cut. Bounds the memory of a pass.
constexpr int64_t kPassTokens = 256;

bool SameTokens(absl::Span<const int32_t> a, absl::Span<const int32_t> b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
}

}  // namespace

absl::Status EngineImpl::Step(absl::Span<StepItem> items) {
  RETURN_IF_ERROR(CheckStep(items));
  std::vector<Work> works = Plan(items);
  std::vector<Segment> segments;
  std::vector<Work*> owners;
  while (NextPass(absl::MakeSpan(works), &segments, &owners)) {
    RunPass(*owners[0]->weights, segments);
    if (ranks_ != nullptr) RETURN_IF_ERROR(ranks_->status());
    AfterPass(owners, segments);
  }
  for (Work& work : works) {
    for (size_t i : work.same) {
      auto* sequence = static_cast<EngineSequence*>(items[i].sequence);
      sequence->kv = work.sequence->kv;
      sequence->ids = work.sequence->ids;
      sequence->made_by = work.sequence->made_by;
      sequence->residual_position = work.sequence->residual_position;
      sequence->mtp_next = work.sequence->mtp_next;
      sequence->guess = -1;
    }
  }
  std::vector<DraftWork> drafts;
  for (Work& work : works) {
    std::vector<size_t> members = work.same;
    members.push_back(static_cast<size_t>(work.item - items.data()));
    for (size_t i : members) {
      auto* sequence = static_cast<EngineSequence*>(items[i].sequence);
      stats_.fed_tokens += static_cast<int64_t>(items[i].tokens.size());
      RETURN_IF_ERROR(SampleInto(&work, &items[i], sequence));
      if (!speculate_) continue;
      const std::vector<SampledToken>& sampled = items[i].sampled;
      DraftWork draft = MakeDraft(work, sequence, sampled.empty() ? -1 : sampled.back().id);
      if (!sampled.empty() && !sampled.back().stop) draft.sampling = items[i].sampling;
      drafts.push_back(std::move(draft));
    }
  }
  RETURN_IF_ERROR(RunDrafts(std::move(drafts)));
  for (const Work& work : works) {
    if (work.ends_page) KeepState(work);
  }
  return absl::OkStatus();
}

std::vector<EngineImpl::Work> EngineImpl::Plan(absl::Span<StepItem> items) {
  std::vector<Work> works;
  works.reserve(items.size());
  int64_t logit_rows = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    StepItem& item = items[i];
    item.sampled.clear();
    item.routes.clear();
    auto* sequence = static_cast<EngineSequence*>(item.sequence);
    Work* work = nullptr;
    // Only prompts are compared: sequences of one token a step part at their first sample.
    for (size_t w = 0; item.tokens.size() > 1 && w < works.size() && work == nullptr; ++w) {
      if (works[w].weights == Of(item.weights) && SameTokens(works[w].item->tokens, item.tokens) &&
          SameTokens(works[w].sequence->ids, sequence->ids) &&
          works[w].sequence->made_by == sequence->made_by) {
        work = &works[w];
        work->same.push_back(i);
      }
    }
    if (work == nullptr) {
      work = &works.emplace_back();
      work->item = &item;
      work->sequence = sequence;
      work->weights = Of(item.weights);
      work->start = sequence->length();
      work->tokens = item.tokens;
      work->guessed = item.sampling != nullptr && item.max_samples > 1 && sequence->guess >= 0 &&
                      item.tokens.size() == 1 && item.tokens[0] == sequence->mtp_next &&
                      work->start + 2 <= max_context_;
      if (work->guessed) {
        work->with_guess = {item.tokens[0], sequence->guess};
        work->tokens = work->with_guess;
      }
    }
    if (item.sampling != nullptr && !work->wants_logits) {
      work->wants_logits = true;
      logit_rows += work->guessed ? 2 : 1;
    }
    if (item.want_routes) work->routes.resize(work->tokens.size() * route_row());
  }
  logits_.resize(static_cast<size_t>(logit_rows * config_.vocab_size));
  float* logits = logits_.data();
  for (Work& work : works) {
    if (!work.wants_logits) continue;
    work.logits = logits;
    logits += (work.guessed ? 2 : 1) * config_.vocab_size;
  }
  return works;
}

bool EngineImpl::NextPass(absl::Span<Work> works, std::vector<Segment>* segments,
                          std::vector<Work*>* owners) {
  segments->clear();
  owners->clear();
  const int64_t page = model_->layout().page_tokens;
  int64_t room = kPassTokens;
  for (Work& work : works) {
    const int64_t all = static_cast<int64_t>(work.tokens.size()), left = all - work.fed;
    // A token and its guess are one piece: the logits of both are wanted.
    if (left == 0 || room < (work.guessed ? 2 : 1)) continue;
    if (!owners->empty() && owners->front()->weights != work.weights) continue;
    Segment segment;
    segment.kv = &work.sequence->kv;
    segment.start = work.start + work.fed;
    int64_t count = std::min(left, room);
    // The last page that the step fills ends a pass, so that its state can be kept.
    const int64_t border = (work.start + all) / page * page;
    if (!work.guessed && segment.start < border && segment.start + count > border)
      count = border - segment.start;
    segment.tokens = work.tokens.subspan(static_cast<size_t>(work.fed), static_cast<size_t>(count));
    if (!work.routes.empty())
      segment.routes = work.routes.data() + static_cast<size_t>(work.fed) * route_row();
    if (work.wants_logits && count == left) {
      segment.logits = work.logits;
      segment.logit_rows = work.guessed ? 2 : 1;
    }
    if (speculate_) {
      work.residual.resize(static_cast<size_t>(count * flat()));
      work.residual_start = segment.start;
      segment.residual = work.residual.data();
    }
    work.fed += count;
    room -= count;
    stats_.computed_tokens += count;
    segments->push_back(segment);
    owners->push_back(&work);
  }
  return !segments->empty();
}

void EngineImpl::RunPass(const LoadedWeights& weights, const std::vector<Segment>& segments) {
  const int64_t threads = workers_->threads(), count = static_cast<int64_t>(segments.size());
  if (!small_ || threads == 1 || count < threads) {
    model_->Forward(weights.tensors, segments, workers_.get(), &workspaces_[0]);
    return;
  }
  int64_t tokens = 0;
  for (const Segment& segment : segments) tokens += static_cast<int64_t>(segment.tokens.size());
  // Consecutive segments with about the same number of tokens for each thread.
  std::vector<int64_t> first = {0};
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t share = tokens * static_cast<int64_t>(first.size()) / threads;
    if (i > first.back() && sum >= share && static_cast<int64_t>(first.size()) < threads)
      first.push_back(i);
    sum += static_cast<int64_t>(segments[static_cast<size_t>(i)].tokens.size());
  }
  first.push_back(count);
  // Copies of one state may be in two parts: they come apart here, not on two threads.
  for (const Segment& segment : segments)
    segment.kv->Reserve(segment.start + static_cast<int64_t>(segment.tokens.size()));
  workers_->Run(static_cast<int64_t>(first.size()) - 1, [&](int64_t part) {
    const auto at = static_cast<size_t>(part);
    const absl::Span<const Segment> own = absl::MakeSpan(segments).subspan(
        static_cast<size_t>(first[at]), static_cast<size_t>(first[at + 1] - first[at]));
    model_->Forward(weights.tensors, own, nullptr, &workspaces_[at]);
  });
}

// The MTP block sees the rows of a pass whose next tokens are known; states at the end of a page go
// to the cache. The last pass of a work waits for its samples, which the MTP block needs.
void EngineImpl::AfterPass(absl::Span<Work* const> owners, const std::vector<Segment>& segments) {
  for (size_t i = 0; i < owners.size(); ++i) {
    Work* work = owners[i];
    EngineSequence* sequence = work->sequence;
    const absl::Span<const int32_t> tokens = segments[i].tokens;
    const bool last = work->fed == static_cast<int64_t>(work->tokens.size());
    const size_t real = tokens.size() - (work->guessed ? 1 : 0);
    sequence->ids.insert(sequence->ids.end(), tokens.begin(),
                         tokens.begin() + static_cast<ptrdiff_t>(real));
    sequence->NoteOrigin(segments[i].start, work->weights->digest_text);
    if (speculate_ && !last) {
      const int32_t next = work->tokens[static_cast<size_t>(work->fed)];
      std::vector<DraftWork> drafts;
      drafts.push_back(MakeDraft(*work, sequence, next));
      // Without a guess nothing is sampled, so nothing can fail.
      RunDrafts(std::move(drafts)).IgnoreError();
    }
    const int64_t end = segments[i].start + static_cast<int64_t>(tokens.size());
    if (work->tokens.size() == 1 || work->guessed || end % model_->layout().page_tokens != 0)
      continue;
    if (last) {
      work->ends_page = true;
    } else {
      KeepState(*work);
    }
  }
}

void EngineImpl::KeepState(const Work& work) {
  // A state that older weights made in part is no state of these.
  if (work.sequence->made_by.size() == 1) {
    work.weights->cache->Insert(work.sequence->ids, work.sequence->kv);
    if (disk_ != nullptr)
      disk_->Insert(work.weights->digest_text, work.sequence->ids, work.sequence->kv);
  }
}

absl::Status EngineImpl::SampleInto(Work* work, StepItem* item, EngineSequence* sequence) {
  size_t rows = item->tokens.size();
  if (item->sampling != nullptr) {
    const size_t vocab = static_cast<size_t>(config_.vocab_size);
    ASSIGN_OR_RETURN(SampledToken first,
                     Sample({work->logits, vocab}, *item->sampling, sequence->ids));
    item->sampled_id = first.id;
    item->logprob = first.logprob;
    item->raw_logprob = first.raw_logprob;
    const bool right = work->guessed && !first.stop && first.id == work->with_guess[1];
    item->sampled.push_back(std::move(first));
    if (work->guessed) {
      ++stats_.guesses;
      stats_.right_guesses += right;
    }
    if (right) {
      ++rows;
      sequence->ids.push_back(item->sampled_id);
      ASSIGN_OR_RETURN(SampledToken second,
                       Sample({work->logits + vocab, vocab}, *item->sampling, sequence->ids));
      item->sampled.push_back(std::move(second));
    } else if (work->guessed) {
      sequence->kv.Rewind(static_cast<int64_t>(sequence->ids.size()));
    }
  }
  if (item->want_routes) {
    item->routes.assign(work->routes.begin(),
                        work->routes.begin() + static_cast<ptrdiff_t>(rows * route_row()));
  }
  return absl::OkStatus();
}

EngineImpl::DraftWork EngineImpl::MakeDraft(const Work& work, EngineSequence* sequence,
                                            int32_t last) const {
  DraftWork draft;
  draft.sequence = sequence;
  draft.weights = work.weights;
  const int64_t first = work.residual_start, end = sequence->length();
  const size_t row = static_cast<size_t>(flat());
  draft.start = first;
  // The position before the pass, when its next token was not known or was another one.
  if (first > 0 && sequence->residual_position == first - 1 &&
      (sequence->kv.mtp_length() < first ||
       sequence->mtp_next != sequence->ids[static_cast<size_t>(first)])) {
    draft.start = first - 1;
    draft.residual.assign(sequence->kv.Residual(), sequence->kv.Residual() + row);
  }
  draft.residual.insert(
      draft.residual.end(), work.residual.begin(),
      work.residual.begin() + static_cast<ptrdiff_t>(end - first) * static_cast<ptrdiff_t>(row));
  for (int64_t position = draft.start; position + 1 < end; ++position)
    draft.next.push_back(sequence->ids[static_cast<size_t>(position + 1)]);
  if (last >= 0) draft.next.push_back(last);
  return draft;
}

absl::Status EngineImpl::RunDrafts(std::vector<DraftWork> drafts) {
  if (drafts.empty()) return absl::OkStatus();
  const size_t vocab = static_cast<size_t>(config_.vocab_size), row = static_cast<size_t>(flat());
  std::vector<float> logits(drafts.size() * vocab);
  std::map<const LoadedWeights*, std::vector<Segment>> segments;
  for (size_t i = 0; i < drafts.size(); ++i) {
    DraftWork& draft = drafts[i];
    draft.sequence->guess = draft.sequence->mtp_next = -1;
    if (draft.next.empty()) continue;
    Segment segment;
    segment.kv = &draft.sequence->kv;
    segment.start = draft.start;
    segment.tokens = draft.next;
    segment.residual = draft.residual.data();
    if (draft.sampling != nullptr) segment.logits = logits.data() + i * vocab;
    segments[draft.weights].push_back(segment);
  }
  for (const auto& [weights, own] : segments)
    model_->Draft(weights->tensors, own, workers_.get(), &workspaces_[0]);
  for (size_t i = 0; i < drafts.size(); ++i) {
    DraftWork& draft = drafts[i];
    EngineSequence* sequence = draft.sequence;
    sequence->kv.Reserve(sequence->length());
    std::copy_n(draft.residual.end() - static_cast<ptrdiff_t>(row), row, sequence->kv.Residual());
    sequence->residual_position = sequence->length() - 1;
    if (sequence->kv.mtp_length() < sequence->length()) continue;
    sequence->mtp_next = draft.next.back();
    if (draft.sampling == nullptr) continue;
    // Drawn as the token itself will be, so that the same draw mostly finds the same token.
    std::vector<int32_t> history = sequence->ids;
    history.push_back(sequence->mtp_next);
    ASSIGN_OR_RETURN(const SampledToken guess,
                     Sample({logits.data() + i * vocab, vocab}, *draft.sampling, history));
    sequence->guess = guess.id;
  }
  return absl::OkStatus();
}

}  // namespace reprise::engine
