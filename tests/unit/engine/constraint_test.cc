// Sampling under a grammar: what is drawn and reported is the masked distribution and undoes to the
// plain one; guesses of the MTP block and other sequences of a batch change nothing.
#include <cmath>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/engine.h"
#include "engine/sampler.h"
#include "tests/unit/engine/model_files.h"
#include "tests/unit/engine/random_schema.h"

namespace reprise::engine {
namespace {

using Json = nlohmann::json;

constexpr char kTools[] = R"([{"name": "go", "parameters": {"type": "object", "properties": {
  "where": {"enum": ["left", "right", 7]}, "far": {"type": "boolean"},
  "note": {"type": "string", "maxLength": 4}}, "required": ["where"]}}])";

constexpr size_t kTokens = 340;  // of an answer: most are one byte

GrammarSpec Spec(CallChoice choice) {
  GrammarSpec spec;
  spec.mode = ThinkingMode::kChat;
  spec.choice = choice;
  spec.tools_json = kTools;
  return spec;
}

// A model with an MTP block and 272 tokens, the last of them the marker of calls.
class MarkedModel {
 public:
  MarkedModel() : files_(std::string(REPRISE_SOURCE_DIR) + "/tests/golden/model/quantised/csa") {
    Json tokenizer = Json::parse(std::ifstream(files_.file("tokenizer.json")));
    Json& vocab = tokenizer["model"]["vocab"];
    std::string last;
    for (const auto& [token, id] : vocab.items()) {
      if (id == kMarker) last = token;
    }
    vocab.erase(last);
    Json merges = Json::array();
    for (const Json& merge : tokenizer["model"]["merges"]) {
      const std::string joined = merge.is_string()
                                     ? merge.get<std::string>()
                                     : merge[0].get<std::string>() + merge[1].get<std::string>();
      std::string text = joined;
      std::erase(text, ' ');
      if (text != last && joined.find(last) == std::string::npos) merges.push_back(merge);
    }
    tokenizer["model"]["merges"] = merges;
    tokenizer["added_tokens"].push_back(
        {{"id", kMarker}, {"content", "｜DSML｜"}, {"special", true}});
    std::ofstream(files_.file("tokenizer.json")) << tokenizer;
  }
  std::unique_ptr<Engine> Load(bool speculate, int threads = 2) const {
    EngineOptions options;
    options.threads = threads;
    options.speculate = speculate;
    auto engine = Engine::Load(files_.path(), options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return engine.ok() ? *std::move(engine) : nullptr;
  }

 private:
  static constexpr int kMarker = 271;
  ModelDirectory files_;
};

struct Request {
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  const GrammarSpec* grammar = nullptr;
};

// All requests in one batch, to their end or to `count` tokens.
std::vector<std::vector<SampledToken>> Generate(Engine* engine, std::vector<Request> requests,
                                                size_t count) {
  std::vector<std::vector<SampledToken>> out(requests.size());
  std::vector<std::unique_ptr<Sequence>> sequences;
  for (Request& request : requests) {
    sequences.push_back(engine->NewSequence());
    request.sampling.stop_ids = {engine->eos_id()};
    if (request.grammar == nullptr) continue;
    auto grammar = AnswerGrammar::Compile(*request.grammar);
    EXPECT_TRUE(grammar.ok()) << grammar.status();
    auto masks = engine->MasksFor(*grammar);
    EXPECT_TRUE(masks.ok()) << masks.status();
    request.sampling.constraint = std::make_shared<AnswerConstraint>(*masks, request.prompt.size());
  }
  while (true) {
    std::vector<StepItem> items;
    std::vector<size_t> who;
    for (size_t i = 0; i < requests.size(); ++i) {
      if (out[i].size() >= count || (!out[i].empty() && out[i].back().stop)) continue;
      StepItem item;
      item.sequence = sequences[i].get();
      item.tokens = absl::MakeConstSpan(requests[i].prompt)
                        .subspan(static_cast<size_t>(sequences[i]->length()));
      item.sampling = &requests[i].sampling;
      item.max_samples = out[i].size() + 1 < count ? 2 : 1;
      items.push_back(item);
      who.push_back(i);
    }
    if (items.empty()) return out;
    const absl::Status status = engine->Step(absl::MakeSpan(items));
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok()) return out;
    for (size_t j = 0; j < items.size(); ++j) {
      for (SampledToken& token : items[j].sampled) {
        requests[who[j]].prompt.push_back(token.id);
        out[who[j]].push_back(std::move(token));
      }
    }
  }
}

using Reported = std::vector<std::tuple<int32_t, float, float, int32_t, float>>;
Reported ReportOf(const std::vector<SampledToken>& tokens) {
  Reported out;
  for (const SampledToken& token : tokens) {
    out.emplace_back(token.id, token.logprob, token.raw_logprob, token.allowed,
                     token.allowed_logprob);
  }
  return out;
}

std::vector<int32_t> Ids(const std::vector<SampledToken>& tokens) {
  std::vector<int32_t> ids;
  for (const SampledToken& token : tokens) ids.push_back(token.id);
  return ids;
}

std::vector<Request> Requests(const GrammarSpec* required, const GrammarSpec* automatic) {
  std::vector<Request> requests(9);
  for (size_t i = 0; i < requests.size(); ++i) {
    for (size_t t = 0; t < 20 + i; ++t)
      requests[i].prompt.push_back(static_cast<int32_t>((t * 31 + i * t) % 256 + 3));
    requests[i].sampling.seed = 40 + i;
    if (i % 3 != 2) requests[i].grammar = i % 3 == 0 ? required : automatic;
  }
  requests[0].sampling.temperature = 0;
  requests[3].sampling.temperature = 0.6f;
  requests[6].sampling.top_p = 0.7f;
  return requests;
}

TEST(ConstraintTest, GuessesAndTheBatchChangeNothing) {
  const GrammarSpec required = Spec(CallChoice::kRequired), automatic = Spec(CallChoice::kAuto);
  const MarkedModel model;
  const auto plain = model.Load(false), guessing = model.Load(true);
  const auto requests = Requests(&required, &automatic);
  const auto expected = Generate(plain.get(), requests, kTokens);
  const auto found = Generate(guessing.get(), requests, kTokens);
  int finished = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(ReportOf(found[i]), ReportOf(expected[i])) << i;
    const auto alone = Generate(plain.get(), {requests[i]}, kTokens);
    EXPECT_EQ(ReportOf(alone[0]), ReportOf(expected[i])) << i;
    if (requests[i].grammar != &required || !expected[i].back().stop) continue;
    ++finished;
    const std::string text = plain->tokenizer().Decode(Ids(expected[i]));
    const ParsedTurn turn = ParseTurn(text, ThinkingMode::kChat);
    EXPECT_EQ(turn.error, "") << text;
    ASSERT_FALSE(turn.tool_calls.empty()) << text;
    for (const ToolCall& call : turn.tool_calls) {
      const auto schema = OrderedJson::parse(kTools)[0]["parameters"];
      EXPECT_EQ(Misfit(schema, OrderedJson::parse(call.arguments_json)), "") << text;
    }
  }
  EXPECT_EQ(finished, 3);
  EXPECT_GT(guessing->stats().right_guesses, 50);  // where one token is possible, at least
}

TEST(ConstraintTest, AnotherPrefillAndARewindGoOnTheSame) {
  const GrammarSpec required = Spec(CallChoice::kRequired);
  const MarkedModel model;
  const auto engine = model.Load(true);
  Request request = Requests(&required, &required)[3];
  const auto whole = Generate(engine.get(), {request}, 80)[0];
  ASSERT_GT(whole.size(), 30u);
  // As a restart has it: a prompt with a part of the answer, and a constraint that begins in it.
  for (const size_t cut : {1, 7, 20}) {
    const auto sequence = engine->NewSequence();
    std::vector<int32_t> tokens = request.prompt;
    for (size_t i = 0; i < cut; ++i) tokens.push_back(whole[i].id);
    SamplingParams sampling = request.sampling;
    sampling.stop_ids = {engine->eos_id()};
    sampling.constraint = std::make_shared<AnswerConstraint>(
        *engine->MasksFor(*AnswerGrammar::Compile(required)), request.prompt.size());
    for (size_t i = cut; i < whole.size(); ++i) {
      StepItem item;
      item.sequence = sequence.get();
      item.tokens = absl::MakeConstSpan(tokens).subspan(static_cast<size_t>(sequence->length()));
      item.sampling = &sampling;
      ASSERT_TRUE(engine->Step(absl::MakeSpan(&item, 1)).ok());
      ASSERT_EQ(ReportOf(item.sampled), ReportOf({whole[i]})) << cut << " " << i;
      tokens.push_back(item.sampled_id);
      if (i % 5 == 4) {
        ASSERT_TRUE(sequence->Rewind(sequence->length() - 1).ok());
      }
    }
  }
}

// Over the vocabulary of tiny-v4, with made up logits.
class MaskedSampleTest : public testing::Test {
 protected:
  static constexpr int32_t kVocab = 640;
  MaskedSampleTest()
      : tokenizer_(
            *Tokenizer::Load(std::string(REPRISE_SOURCE_DIR) + "/examples/tiny-v4/tokenizer.json")),
        masks_(std::make_shared<TokenMasks>(*AnswerGrammar::Compile(Spec(CallChoice::kRequired)),
                                            *TokenTrie::Make(*tokenizer_, kVocab))) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, 2);
    for (int i = 0; i < kVocab; ++i) logits_.push_back(normal(random));
    // In the text of `note`, where much is allowed.
    history_ = tokenizer_->Encode(
        "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"go\">\n<｜DSML｜parameter "
        "name=\"note\" string=\"true\">a");
  }
  SampledToken Draw(SamplingParams params) {
    params.constraint = std::make_shared<AnswerConstraint>(masks_, 0);
    auto token = Sample(logits_, params, history_);
    EXPECT_TRUE(token.ok()) << token.status();
    return *token;
  }
  double PlainLogprob(int32_t id, double temperature) const {
    double sum = 0;
    for (const float logit : logits_) sum += std::exp(logit / temperature);
    return logits_[static_cast<size_t>(id)] / temperature - std::log(sum);
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::shared_ptr<TokenMasks> masks_;
  std::vector<float> logits_;
  std::vector<int32_t> history_;
};

TEST_F(MaskedSampleTest, WhatIsReportedUndoesTheMask) {
  for (const float temperature : {1.0f, 0.7f, 3.0f}) {
    std::map<int32_t, int> drawn;
    double sum = 0;
    for (uint64_t seed = 0; seed < 150; ++seed) {
      const SampledToken token =
          Draw({.temperature = temperature, .seed = seed, .kept_max = kVocab});
      ASSERT_GT(token.allowed, 100);
      ASSERT_LT(token.allowed, kVocab);
      EXPECT_EQ(token.kept.size(), static_cast<size_t>(token.allowed));
      EXPECT_TRUE(std::binary_search(token.kept.begin(), token.kept.end(), token.id));
      EXPECT_LT(token.allowed_logprob, 0);
      EXPECT_NEAR(token.logprob + token.allowed_logprob, PlainLogprob(token.id, temperature), 1e-4);
      EXPECT_NEAR(token.raw_logprob, PlainLogprob(token.id, 1), 1e-4);
      sum = 0;
      for (const int32_t id : token.kept)
        sum += std::exp(PlainLogprob(id, temperature) - token.allowed_logprob);
      ++drawn[token.id];
    }
    EXPECT_NEAR(sum, 1, 1e-4);
    for (const auto& [id, times] : drawn) {
      if (times < 30) continue;
      const SampledToken any = Draw({.temperature = temperature});
      EXPECT_NEAR(times / 150.0, std::exp(PlainLogprob(id, temperature) - any.allowed_logprob),
                  0.13);
    }
  }
}

TEST_F(MaskedSampleTest, CutsAreOfWhatIsAllowed) {
  SamplingParams params{.top_k = 3, .kept_max = 10};
  const SampledToken token = Draw(params);
  ASSERT_EQ(token.kept.size(), 3u);
  const SampledToken greedy = Draw({.temperature = 0});
  EXPECT_EQ(greedy.logprob, 0);
  const auto allowed = *AnswerConstraint(masks_, 0).Allowed(history_);
  for (int32_t id = 0; id < kVocab; ++id) {
    if (!allowed->Has(id)) continue;
    EXPECT_LE(logits_[id], logits_[greedy.id]);
  }
  EXPECT_TRUE(std::binary_search(token.kept.begin(), token.kept.end(), greedy.id));
  // All of them together are less likely than everything.
  EXPECT_NEAR(greedy.allowed_logprob, Draw({}).allowed_logprob, 1e-6);
  params.min_p = 1;
  EXPECT_EQ(Draw(params).id, greedy.id);
}

TEST_F(MaskedSampleTest, AfterTheEndAnythingGoes) {
  history_ = tokenizer_->Encode(
      "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"go\">\n<｜DSML｜parameter name=\"where\" "
      "string=\"false\">7</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>");
  const SampledToken end = Draw({});
  EXPECT_EQ(end.id, *tokenizer_->AddedTokenId("<｜end▁of▁sentence｜>"));
  EXPECT_EQ(end.logprob, 0);
  EXPECT_EQ(end.allowed, 1);
  history_.push_back(end.id);
  EXPECT_EQ(Draw({}).allowed, 0);
}

}  // namespace
}  // namespace reprise::engine
