// Calls in virtual machines of the vm tier: the cases of every tier.
#include "tests/integration/fullvm_support.h"
#include "tests/integration/tier_cases.h"

namespace reprise::sandboxd {
namespace {

INSTANTIATE_TYPED_TEST_SUITE_P(Vm, TierCases, FullvmTest);

}  // namespace
}  // namespace reprise::sandboxd
