#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

namespace reprise::base {
namespace {

spdlog::logger& Logger() {
  static spdlog::logger* logger = [] {
    auto* made = new spdlog::logger("reprise", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %l %v", spdlog::pattern_time_type::utc);
    return made;
  }();
  return *logger;
}

}  // namespace

void SetLogLevel(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug: Logger().set_level(spdlog::level::debug); break;
    case LogLevel::kInfo: Logger().set_level(spdlog::level::info); break;
    case LogLevel::kWarn: Logger().set_level(spdlog::level::warn); break;
    case LogLevel::kError: Logger().set_level(spdlog::level::err); break;
    case LogLevel::kOff: Logger().set_level(spdlog::level::off); break;
  }
}

void LogDebug(std::string_view message) { Logger().debug("{}", message); }
void LogInfo(std::string_view message) { Logger().info("{}", message); }
void LogWarn(std::string_view message) { Logger().warn("{}", message); }
void LogError(std::string_view message) { Logger().error("{}", message); }

}  // namespace reprise::base
