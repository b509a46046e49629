// Which handler answers which method and path. Patterns are segments; "{}" matches any one segment
// and its text goes to Request::params.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "http/message.h"

namespace reprise::http {

struct Route {
  std::string method;
  std::string pattern;  // "/sandboxes/{}/timeout"
  Guard guard;          // may be null
  Handler handler;
  size_t body_max = 0;                // bytes
  bool in_pieces = false;             // the body comes through Request::reader
  std::vector<std::string> segments;  // of the pattern; Add fills them in
};

class Router {
 public:
  void Add(Route route);
  // The route, with `params` filled in. nullptr: nobody knows the path, or `*path_known`: it has
  // other methods.
  const Route* Find(std::string_view method, const std::vector<std::string>& segments,
                    std::vector<std::string>* params, bool* path_known) const;
  const std::vector<Route>& routes() const { return routes_; }

 private:
  std::vector<Route> routes_;
};

}  // namespace reprise::http
