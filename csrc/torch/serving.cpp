#include "serving.h"

#include <vector>

namespace pgm_fast::host {
namespace {

std::vector<Op*>& ops() {
  static std::vector<Op*> all;
  return all;
}

}  // namespace

Op::Op(const char* name) : name_(name) { ops().push_back(this); }

bool Op::serve(const std::string& name, at::ScalarType dtype) {
  for (Op* op : ops()) {
    if (op->name_ == name) {
      op->served_.fetch_or(uint64_t{1} << static_cast<int>(dtype));
      return true;
    }
  }
  return false;
}

bool Op::set_dispatch(const std::string& name, const py::object& dispatch) {
  for (Op* op : ops()) {
    if (op->name_ == name) {
      op->dispatch_ = dispatch.inc_ref().ptr();
      return true;
    }
  }
  return false;
}

void Op::forget() {
  for (Op* op : ops()) op->served_ = 0;
}

}  // namespace pgm_fast::host
