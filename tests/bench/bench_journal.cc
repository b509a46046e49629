// What a durable record of the journal costs: TrajectoryLog with fsync, by 1 and by 256 appenders
// that each go on when their record is durable (from its callback, as the scheduler does, and from
// a thread of their own), against RocksDB's own group commit with one synced Put a thread (the
// rival) and against one append and one fdatasync a record (the floor of a log that shares no
// sync). All write 300 bytes, to the same file system, in turns within one run, so that the ratios
// hold on a machine that does other things too.
//
// Usage: bench_journal [--seconds S] [--turns N]; TMPDIR says on which file system.
#include <fcntl.h>
#include <rocksdb/db.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <linux/magic.h>

#include "absl/synchronization/blocking_counter.h"
#include "base/clock.h"
#include "base/fd.h"
#include "replay/keys.h"
#include "replay/trajectory_log.h"
#include "storage/store.h"
#include "tests/bench/support.h"

namespace reprise::replay {
namespace {

constexpr size_t kRecordBytes = 300;
constexpr size_t kAppenders[] = {1, 256};

struct Options {
  double seconds = 1;  // of one turn
  int turns = 4;       // of each kind
};

[[noreturn]] void Fail(const std::string& what) {
  fmt::print(stderr, "bench_journal: {}\n", what);
  std::exit(1);
}

// One way to make a record durable: by a call that returns, or by one that calls back, when the
// record of `appender` with that `number` is on the disk.
struct Kind {
  std::string name;
  std::function<bool(size_t appender, uint64_t number)> append;
  std::function<void(size_t appender, uint64_t number, std::function<void(bool)> done)> start;
  std::vector<uint64_t> next = {};  // by appender
  std::vector<double> us = {};      // of all appenders
  double seconds = 0;

  double Rate() const { return static_cast<double>(us.size()) / seconds; }
};

std::string TrajectoryOf(size_t appender) { return fmt::format("bench/{:06}/0", appender); }

// A sampled token whose routes fill the entry up to the size of a record.
journal::TrajectoryEntry Entry(uint64_t number) {
  journal::TrajectoryEntry entry;
  journal::SampledTokens* sampled = entry.mutable_sampled();
  sampled->set_position(number);
  sampled->add_ids(static_cast<int32_t>(number));
  sampled->add_logprobs(-0.5f);
  constexpr size_t kFieldHeader = 4;  // tag and length, of this field and more of the one around it
  sampled->set_routed_experts(std::string(kRecordBytes - kFieldHeader - entry.ByteSizeLong(), 'r'));
  return entry;
}

// The real path: trajectory log, store, committer thread.
class Journal {
 public:
  explicit Journal(const std::string& dir) {
    storage::StoreOptions options;
    options.path = dir;
    options.families = TrajectoryLogFamilies();
    auto store = storage::Store::Open(options);
    if (!store.ok()) Fail(std::string(store.status().message()));
    store_ = *std::move(store);
    auto log = TrajectoryLog::Open(store_.get());
    if (!log.ok()) Fail(std::string(log.status().message()));
    log_ = *std::move(log);
  }
  bool Append(size_t appender, uint64_t number) {
    return log_->AppendAll({{TrajectoryOf(appender), number, Entry(number)}}).ok();
  }
  void Start(size_t appender, uint64_t number, std::function<void(bool)> done) {
    log_->AppendAsync({{TrajectoryOf(appender), number, Entry(number)}},
                      [done = std::move(done)](absl::Status status) { done(status.ok()); });
  }
  storage::Store::Stats stats() const { return store_->stats(); }

 private:
  std::unique_ptr<storage::Store> store_;
  std::unique_ptr<TrajectoryLog> log_;
};

class Rocks {
 public:
  explicit Rocks(const std::string& dir) {
    rocksdb::Options options;
    options.create_if_missing = true;
    rocksdb::DB* db = nullptr;
    rocksdb::Status status = rocksdb::DB::Open(options, dir + "/rocksdb", &db);
    if (!status.ok()) Fail(status.ToString());
    db_.reset(db);
  }
  bool Append(size_t appender, uint64_t number) {
    rocksdb::WriteOptions write;
    write.sync = true;
    return db_->Put(write, IdNumberKey(TrajectoryOf(appender), number), value_).ok();
  }

 private:
  std::unique_ptr<rocksdb::DB> db_;
  const std::string value_ = std::string(kRecordBytes, 'r');
};

class SyncedFile {
 public:
  explicit SyncedFile(const std::string& dir)
      : fd_(::open((dir + "/file").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)) {
    if (!fd_.valid()) Fail(fmt::format("cannot write {}/file", dir));
  }
  bool Append() {
    return ::write(fd_.get(), record_.data(), record_.size()) ==
               static_cast<ssize_t>(kRecordBytes) &&
           ::fdatasync(fd_.get()) == 0;
  }

 private:
  const base::UniqueFd fd_;
  const std::string record_ = std::string(kRecordBytes, 'r');
};

// What the appenders of one turn share; an appender's parts are used by one thread at a time.
struct Turn {
  Kind* kind;
  double ms;
  base::Stopwatch watch;
  std::vector<std::vector<double>> us;

  bool over() const { return watch.ElapsedMillis() >= ms; }
  void Note(size_t appender, bool written, const base::Stopwatch& one) {
    if (!written) Fail(fmt::format("{}: a write failed", kind->name));
    ++kind->next[appender];
    us[appender].push_back(static_cast<double>(one.ElapsedMicros()));
  }
};

void Threads(Turn* turn, size_t appenders) {
  std::vector<std::thread> threads;
  for (size_t i = 0; i < appenders; ++i) {
    threads.emplace_back([turn, i] {
      while (!turn->over()) {
        const base::Stopwatch one;
        turn->Note(i, turn->kind->append(i, turn->kind->next[i]), one);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

void Chain(Turn* turn, size_t appender, absl::BlockingCounter* left) {
  const base::Stopwatch one;
  turn->kind->start(appender, turn->kind->next[appender],
                    [turn, appender, left, one](bool written) {
                      turn->Note(appender, written, one);
                      if (turn->over()) {
                        left->DecrementCount();
                      } else {
                        Chain(turn, appender, left);
                      }
                    });
}

// All appenders at once for `seconds`.
void Run(Kind* kind, size_t appenders, double seconds) {
  kind->next.resize(appenders);
  Turn turn{kind, seconds * 1000.0, {}, std::vector<std::vector<double>>(appenders)};
  if (kind->start) {
    absl::BlockingCounter left(static_cast<int>(appenders));
    for (size_t i = 0; i < appenders; ++i) Chain(&turn, i, &left);
    left.Wait();
  } else {
    Threads(&turn, appenders);
  }
  kind->seconds += turn.watch.ElapsedMillis() / 1000.0;
  for (const auto& each : turn.us) kind->us.insert(kind->us.end(), each.begin(), each.end());
}

void Compare(const Options& options, const std::string& dir, size_t appenders) {
  Journal callbacks(dir + "/callbacks"), threads(dir + "/threads");
  Rocks rocks(dir);
  SyncedFile file(dir);
  std::vector<Kind> kinds = {
      {"journal, callbacks", nullptr,
       [&](size_t i, uint64_t n, auto done) { callbacks.Start(i, n, std::move(done)); }},
      {"journal, a thread each", [&](size_t i, uint64_t n) { return threads.Append(i, n); },
       nullptr},
      {"rocksdb, a thread each", [&](size_t i, uint64_t n) { return rocks.Append(i, n); }, nullptr},
      {"append + fdatasync", [&](size_t, uint64_t) { return file.Append(); }, nullptr}};
  for (int turn = 0; turn < options.turns; ++turn) {
    for (Kind& kind : kinds) Run(&kind, appenders, options.seconds);
  }
  fmt::print("{:<32}{:>12}{:>12}{:>12}{:>16}{:>16}\n", fmt::format("{} appenders", appenders),
             "records/s", "p50 us", "p99 us", "ours / it", "its p50 / ours");
  const double rate = kinds[0].Rate(), median = Percentile(kinds[0].us, 0.5);
  for (const Kind& kind : kinds) {
    const double p50 = Percentile(kind.us, 0.5);
    fmt::print("{:<32}{:>12.0f}{:>12.0f}{:>12.0f}{:>15.2f}x{:>15.2f}x\n", kind.name, kind.Rate(),
               p50, Percentile(kind.us, 0.99), rate / kind.Rate(), p50 / median);
  }
  const storage::Store::Stats stats = callbacks.stats();
  fmt::print(
      "journal, callbacks: {} records in {} syncs, {:.1f} a sync\n\n", stats.batches, stats.syncs,
      static_cast<double>(stats.batches) / static_cast<double>(std::max<uint64_t>(1, stats.syncs)));
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--seconds") options.seconds = std::atof(argv[i + 1]);
    if (name == "--turns") options.turns = std::max(1, std::atoi(argv[i + 1]));
  }
  for (size_t appenders : kAppenders) {
    base::ScratchDir scratch("reprise-bench");
    struct statfs info {};
    if (::statfs(scratch.path().c_str(), &info) == 0 && info.f_type == TMPFS_MAGIC) {
      Fail(fmt::format("{} is in memory, where a sync costs nothing; set TMPDIR to a disk",
                       scratch.path()));
    }
    Compare(options, scratch.path(), appenders);
  }
  return 0;
}

}  // namespace
}  // namespace reprise::replay

int main(int argc, char** argv) { return reprise::replay::Main(argc, argv); }
