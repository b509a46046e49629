#include "tests/unit/sandboxd/node.h"

#include <gtest/gtest.h>

#include <utility>

#include "absl/synchronization/notification.h"

namespace reprise::sandboxd {
namespace {

CallStream::Event NextEvent(const std::shared_ptr<CallStream>& stream) {
  absl::Notification ready;
  CallStream::Event event = std::nullopt;
  stream->Next([&](CallStream::Event next) {
    event = std::move(next);
    ready.Notify();
  });
  ready.WaitForNotification();
  return event;
}

}  // namespace

Node::Node(CallOptions calls, SandboxOptions sandboxes)
    : call_options_(std::move(calls)),
      sandbox_options_(std::move(sandboxes)),
      journal_(dir_.path()) {
  Restart();
}
Node::Node(const std::string& directory) : journal_(directory + "/journal") {
  tier_.KeepIn(directory + "/images");
  Restart();
}
Node::~Node() { Down(); }

void Node::Down() {
  if (calls_ != nullptr) calls_->Shutdown();
  calls_.reset();
  sandboxes_.reset();
  log_.reset();
  store_.reset();
}

void Node::Restart(const std::string& boot_id) {
  Down();
  storage::StoreOptions options;
  options.path = journal_;
  options.families = replay::CallLogFamilies();
  options.durability = storage::Durability::kOs;
  auto store = storage::Store::Open(options);
  ASSERT_TRUE(store.ok()) << store.status();
  store_ = *std::move(store);
  auto log = replay::CallLog::Open(store_.get());
  ASSERT_TRUE(log.ok()) << log.status();
  log_ = std::make_unique<FaultyCallLog>(*std::move(log));
  auto health = [log = log_.get()] { return log->health(); };
  SandboxOptions sandboxes = sandbox_options_;
  sandboxes.boot_id = boot_id;
  sandboxes.journal_health = health;
  SandboxManager::Tiers tiers = {{sandbox::TIER_FUNCTION, &tier_}};
  sandboxes_ = std::make_unique<SandboxManager>(std::move(sandboxes), log_.get(), std::move(tiers));
  CallOptions calls = call_options_;
  calls.boot_id = boot_id;
  calls.journal_health = health;
  calls_ = std::make_unique<CallManager>(std::move(calls), log_.get(), sandboxes_.get());
  ASSERT_EQ(sandboxes_->Recover(), absl::OkStatus());
  ASSERT_EQ(calls_->Recover(), absl::OkStatus());
}

void Node::MakeBox(const std::string& id) {
  sandbox::CreateRequest request;
  request.set_sandbox_id(id);
  request.mutable_spec()->set_tier(sandbox::TIER_FUNCTION);
  auto made = sandboxes_->Create(request);
  ASSERT_TRUE(made.ok()) << made.status();
}

sandbox::ExecuteRequest Node::Request(const std::string& call_id) {
  sandbox::ExecuteRequest request;
  request.set_sandbox_id("box");
  request.set_call_id(call_id);
  request.add_argv("program");
  return request;
}

Received Node::Read(const std::shared_ptr<CallStream>& stream) {
  Received received;
  while (true) {
    CallStream::Event event = NextEvent(stream);
    received.status = event.status();
    if (!event.ok() || !event->has_value()) return received;
    const sandbox::ExecuteEvent& got = **event;
    if (got.has_started()) {
      received.started = got.started();
    } else if (got.has_result()) {
      received.result = got.result();
    } else if (got.output().stream() == sandbox::STREAM_STDOUT) {
      const uint64_t expected = received.out_begin + received.out.size();
      EXPECT_GE(got.output().offset(), expected) << "repeated";
      if (got.output().offset() > expected) {
        received.out.clear();
        received.out_begin = got.output().offset();
      }
      EXPECT_LE(got.output().data().size(), Call::kEventBytesMax);
      received.out += got.output().data();
    } else {
      received.err += got.output().data();
    }
  }
}

std::string Node::ReadSome(const std::shared_ptr<CallStream>& stream, size_t bytes) {
  std::string data;
  while (data.size() < bytes) {
    CallStream::Event event = NextEvent(stream);
    if (!event.ok() || !event->has_value()) {
      ADD_FAILURE() << "the stream ended early: " << event.status();
      return data;
    }
    if ((*event)->has_output()) data += (*event)->output().data();
  }
  return data;
}

Received Node::Finish(const std::string& call_id) { return Read(calls_->Attach(call_id)); }

}  // namespace reprise::sandboxd
