// The names of the HTTP server's library (http/) that the surfaces of sandboxd speak.
#pragma once

#include "http/message.h"
#include "http/router.h"

namespace reprise::sandboxd::http {

using ::reprise::http::BodySource;
using ::reprise::http::EqualsIgnoreCase;
using ::reprise::http::ErrorResponse;
using ::reprise::http::Guard;
using ::reprise::http::Handler;
using ::reprise::http::HttpStatus;
using ::reprise::http::JsonResponse;
using ::reprise::http::Request;
using ::reprise::http::RequestPtr;
using ::reprise::http::Respond;
using ::reprise::http::Response;
using ::reprise::http::Route;
using ::reprise::http::Router;

}  // namespace reprise::sandboxd::http
