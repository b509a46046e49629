// File operations: each runs in a process of its own as the sandbox's user, without privileges, on
// the connection that asked for it, so that a slow file system or a hostile path hurts nobody else.
#pragma once

#include <string>

#include "sandboxd/agent/os.h"
#include "sandboxd/agent/protocol.h"

namespace reprise::sandboxd::agent {

bool IsFileOperation(FrameType type);

// The user that the request names; false when the payload is malformed.
bool FileOperationUser(FrameType type, const std::string& payload, std::string* user);

// Serves one request on a blocking connection and ends the process. `rest` is what was read beyond
// the first frame.
[[noreturn]] void ServeFileOperation(int connection, FrameType type, const std::string& payload,
                                     FrameReader rest, const Identity& identity,
                                     const std::string& working_dir);

}  // namespace reprise::sandboxd::agent
