// What a request says of the form of its answer: calls that have to be made or to fit their
// schemas, or content that is JSON of a schema. Everything else is free text.
#pragma once

#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "engine/grammar.h"
#include "engine/token_masks.h"
#include "rollout/http/request_fields.h"
#include "rollout/http/served_model.h"

namespace reprise::rollout::http {

struct Guide {
  engine::GrammarSpec spec;  // without the mode
  std::string field;         // of the request, that it comes from
  bool in_prompt = false;    // the prompt shows the schema too
};

// Of tool_choice, tools[].function.strict, parallel_tool_calls, response_format, guided_json and
// ignore_eos. nullopt: free text.
std::optional<Guide> ReadGuide(RequestFields* fields);
// Of one field that is a schema, as an object or as JSON text. nullopt where it is not there.
std::optional<Guide> ReadSchemaGuide(RequestFields* fields, const char* field);
// `messages` with the schema of `guide` where the chat format shows it.
engine::JsonValue WithSchema(engine::JsonValue messages, const Guide& guide);
// The masks of an answer that begins in `mode`. INVALID_ARGUMENT with FieldOf.
absl::StatusOr<std::shared_ptr<engine::TokenMasks>> MasksOf(Guide guide, engine::ThinkingMode mode,
                                                            const ServedModel& model);

}  // namespace reprise::rollout::http
