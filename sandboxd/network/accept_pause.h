// What a loop that accepts does after an error, as when descriptors run out: it waits a moment.
#pragma once

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <chrono>

namespace reprise::sandboxd::network {

inline constexpr auto kAcceptPause = std::chrono::milliseconds(50);

inline boost::asio::awaitable<void> PauseAccepting(boost::asio::io_context* io) {
  boost::asio::steady_timer pause(*io, kAcceptPause);
  co_await pause.async_wait(boost::asio::as_tuple(boost::asio::use_awaitable));
}

}  // namespace reprise::sandboxd::network
