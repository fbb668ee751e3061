// What a test calls on an emulated library, beside the operators themselves.
#pragma once

#include <cstddef>

#pragma GCC visibility push(default)
extern "C" {

// The only global memory that kernels may touch; ranges must not outlive their memory. A range that
// is registered again takes the new rights: 0 read and write, 1 read only, 2 read and write, but
// undefined: a kernel that reads what was not written before is reported.
void emu_register_range(void* begin, size_t bytes, int rights);
void emu_unregister_range(void* begin);

// Text of the last failure (race, bounds, deadlock, bad launch ...); empty without one.
const char* emu_last_error();
// Forgets error, message and log.
void emu_clear();
// race, bounds, registers (0 or 1: checks), profile (0 or 1: counts instructions), seed, sms,
// occupancy, resident, async (0 early, 1 late, 2 random), max_spins, max_instructions, cc (such as
// 80, 90: the highest PTX up to it is run). Returns -1 for another key.
int emu_set(const char* key, long value);

// One mutation of the PTX from now on, "" for none; returns -1 for text that is none. Places are
// numbered in the order of the PTX, over kernels whose name contains the text behind @:
//   drop:<opcode>:<n>[@kernel]     wait:<n>:<delta>[@kernel]     swap:<opcode>:<n>[@kernel]
//   unpred:<n>[@kernel]            shift:<n>:<bytes>[@kernel]
int emu_mutate(const char* spec);
// How many places there are: "<opcode>" for drop, "wait:", "swap:<opcode>", "unpred:", "shift:".
int emu_count(const char* pattern, const char* kernel);
// These places, one a line: how often the instruction ran for a lane or more and how often its
// guard held a lane back (since profile was set or the mutation changed; else 0), then where it is.
const char* emu_places(const char* pattern, const char* kernel);

// Launches, memsets and copies with their streams, since emu_clear.
const char* emu_log();
// Kernels ever launched, with counts; kernels there are. One a line.
const char* emu_launched();
const char* emu_kernels();
// Kernels with their sizes, PTX that cannot be run, and counters.
const char* emu_report();
}
#pragma GCC visibility pop
