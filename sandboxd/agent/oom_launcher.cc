#include "sandboxd/agent/oom_launcher.h"

#include <signal.h>

#include <cstdlib>

namespace reprise::sandboxd::agent {
namespace {

constexpr size_t kVmstatBytesMax = 64 << 10;
constexpr char kLine[] = "\noom_kill ";
constexpr int kExitOfKilledChild = 128 + SIGKILL;  // as shells report it

}  // namespace

bool OomLauncher::Launch(const Start& start, const Identity& identity,
                         const std::vector<std::string>& env, const std::string& files,
                         SpawnedCommand* command, std::string* why) {
  const uint64_t kills = Kills();
  if (!Launcher::Launch(start, identity, env, files, command, why)) return false;
  before_[start.call_id] = kills;
  return true;
}

void OomLauncher::Judge(const Start& start, End* end) {
  Launcher::Judge(start, end);
  const auto found = before_.find(start.call_id);
  if (found == before_.end()) return;
  const uint64_t before = found->second;
  before_.erase(found);
  const auto kind = static_cast<EndKind>(end->kind);
  const bool killed = (kind == EndKind::kSignaled && end->signal == SIGKILL) ||
                      (kind == EndKind::kExited && end->exit_code == kExitOfKilledChild);
  if (!killed || Kills() <= before) return;
  end->kind = static_cast<uint8_t>(EndKind::kMemoryExceeded);
  end->message = "the sandbox ran out of memory (limits.memory_bytes)";
}

uint64_t OomLauncher::Kills() const {
  const std::string text = "\n" + ReadSmallFile(vmstat_, kVmstatBytesMax);
  const size_t line = text.find(kLine);
  if (line == std::string::npos) return 0;
  return std::strtoull(text.c_str() + line + sizeof(kLine) - 1, nullptr, 10);
}

}  // namespace reprise::sandboxd::agent
