// ld.param and st.param: parameters of kernels, and of calls of device functions.
#include <cstring>

#include "runtime/decode.h"
#include "runtime/ops.h"

namespace emulator {
namespace {

enum Option { kLaunch, kOwn, kScratch, kThroughRegister };

// Where the parameter bytes of a lane begin.
char* param_bytes(const Execution& x, const Instruction& i, int lane) {
  const auto offset = static_cast<size_t>(i.offset);
  const auto number = static_cast<size_t>(lane);
  switch (i.option) {
    case kOwn:
      return x.frame->params.data() + number * x.frame->function.param_bytes + offset;
    case kScratch:
      return x.frame->scratch.data() + number * x.frame->function.scratch_bytes + offset;
    case kThroughRegister: {
      const uint64_t at = x.at<uint64_t>(i.a)[lane] + offset;
      if (at + i.count > x.machine.params.size()) x.fail("parameter out of bounds", lane);
      return x.machine.params.data() + at;
    }
    default:
      return x.machine.params.data() + offset;
  }
}

template <class T, class Stored>
void run_load(Execution& x, const Instruction& i) {
  for (size_t e = 0; e < i.results.size(); ++e) {
    each_lane<Stored>(x, i.results[e], [&](int lane) {
      T value;
      std::memcpy(&value, param_bytes(x, i, lane) + e * sizeof(T), sizeof(T));
      return static_cast<Stored>(value);
    });
  }
}

template <class T, class Stored>
void run_store(Execution& x, const Instruction& i) {
  for (size_t e = 0; e < i.sources.size(); ++e) {
    for_each_lane(x.mask, [&](int lane) {
      const auto value = static_cast<T>(x.at<Stored>(i.sources[e])[lane]);
      std::memcpy(param_bytes(x, i, lane) + e * sizeof(T), &value, sizeof(T));
    });
  }
}

template <class T>
Handler handler(bool is_load, bool is_wide) {
  if (is_load) return is_wide ? run_load<T, uint64_t> : run_load<T, uint32_t>;
  return is_wide ? run_store<T, uint64_t> : run_store<T, uint32_t>;
}

Handler handler(bool is_load, bool is_wide, ptx::Type type) {
  const bool is_signed = type.kind == ptx::Type::Kind::kSigned;
  switch (type.bits) {
    case 8:
      return is_signed ? handler<int8_t>(is_load, is_wide) : handler<uint8_t>(is_load, is_wide);
    case 16:
      return is_signed ? handler<int16_t>(is_load, is_wide) : handler<uint16_t>(is_load, is_wide);
    case 32:
      return is_signed ? handler<int32_t>(is_load, is_wide) : handler<uint32_t>(is_load, is_wide);
    case 64:
      if (!is_wide) throw Unsupported{"narrow register"};
      return handler<uint64_t>(is_load, true);
    default:
      throw Unsupported{"type"};
  }
}

void place(Decoder& decoder, const ptx::Statement& s, const ptx::Operand& address, Instruction* i) {
  if (address.kind != ptx::Operand::Kind::kAddress) throw Unsupported{"an address expected"};
  if (address.elements[0].kind == ptx::Operand::Kind::kRegister) {
    decoder.address(address);
    if (i->is_address_narrow) throw Unsupported{"32-bit parameter address"};
    i->option = kThroughRegister;
    return;
  }
  Decoder::ParamSpace space{};
  const size_t offset = decoder.param(address.elements[0].name, s.scope, &space);
  i->offset = address.value + static_cast<int64_t>(offset);
  i->option = space == Decoder::ParamSpace::kLaunch ? kLaunch
              : space == Decoder::ParamSpace::kOwn  ? kOwn
                                                    : kScratch;
}

}  // namespace

bool decode_params(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  const bool is_load = s.parts[0] == "ld";
  if (!is_load && s.parts[0] != "st") return false;
  if (!s.has("param") && !s.has("param::entry") && !s.has("param::func")) return false;
  const ptx::Type type = first_type(s);
  place(decoder, s, s.operands.at(is_load ? 1 : 0), i);
  const ptx::Operand& values = s.operands.at(is_load ? 0 : 1);
  const bool is_vector = values.kind == ptx::Operand::Kind::kVector;
  bool is_wide = false;
  for (size_t e = 0; e < (is_vector ? values.elements.size() : 1); ++e) {
    const ptx::Operand& value = is_vector ? values.elements[e] : values;
    if (is_load) {
      i->results.push_back(decoder.result_as_is(value, &is_wide));
    } else {
      i->sources.push_back(decoder.source_as_is(value, type.bits, &is_wide));
    }
  }
  i->run = handler(is_load, is_wide, type);
  i->count =
      static_cast<uint8_t>(type.bytes() * std::max<int>(1, static_cast<int>(i->results.size())));
  return true;
}

}  // namespace emulator
