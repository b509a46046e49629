// Log lines to stderr, one format for both daemons and the command. Levels: debug, info, warn, error.
// Messages are built with fmt at the call: LogInfo(fmt::format("opened {}", path)).
#pragma once

#include <string_view>

namespace reprise::base {

enum class LogLevel { kDebug, kInfo, kWarn, kError, kOff };

// Sets the lowest level that is printed; the default is kInfo.
void SetLogLevel(LogLevel level);

void LogDebug(std::string_view message);
void LogInfo(std::string_view message);
void LogWarn(std::string_view message);
void LogError(std::string_view message);

}  // namespace reprise::base
