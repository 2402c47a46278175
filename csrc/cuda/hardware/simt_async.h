// SPDX-License-Identifier: Apache-2.0
// Copies and messages that threads of the emulator begin and do not wait for at once: cp.async, st.async and
// the mbarrier that counts its bytes. Included by simt.h.
#pragma once

namespace simt {

inline void finish(const Copy& copy) {
  memset(copy.to, 0, copy.bytes);
  memcpy(copy.to, copy.from, copy.valid);
}

/// Begins to copy the first `valid` of `bytes` bytes; the others become 0.
inline void begin_copy(void* to, const void* from, size_t bytes, size_t valid) {
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0) {
    fail("misaligned address of a copy");
  }
  const Copy copy{static_cast<char*>(to), static_cast<const char*>(from), bytes, valid};
  if (machine().launch->order->late) {
    memset(to, 0xff, bytes);  // nobody may rely on what was there
    self().copies.push_back(copy);
  } else {
    finish(copy);
  }
}

inline void wait_for_copies() {
  for (const Copy& copy : self().copies) finish(copy);
  self().copies.clear();
}

constexpr uint16_t kOpened = 0x5afe;

inline Inbox& opened(uint64_t* at) {
  Inbox& inbox = *reinterpret_cast<Inbox*>(at);
  if (inbox.mark != kOpened) fail("an inbox that has not been opened");
  return inbox;
}

inline void open_inbox(uint64_t* at) { *reinterpret_cast<Inbox*>(at) = {0, kOpened, 1, 0}; }

/// The one arrival of a phase, and how many bytes its messages have.
inline void expect_bytes(uint64_t* at, int bytes) {
  Inbox& inbox = opened(at);
  if (inbox.arrivals == 0) fail("an inbox that expects twice in a phase");
  inbox.arrivals -= 1;
  inbox.bytes += bytes;
  complete(inbox);
}

/// Sends a number to the corresponding place in another block, and its size to that block's inbox.
template <class T>
void send_to_block(T* at, uint64_t* inbox, int block, T value) {
  opened(inbox);
  Message message{reinterpret_cast<char*>(in_block(at, block)), 0, sizeof(T),
                  reinterpret_cast<Inbox*>(in_block(inbox, block)), &self().block->cluster[block]};
  memcpy(&message.value, &value, sizeof(T));
  Launch& launch = *machine().launch;
  if (launch.order->late) {
    launch.messages.push_back(message);
  } else {
    deliver(launch, message);
  }
}

/// Waits for the end of the phase with this parity.
inline void wait_for_phase(uint64_t* at, int parity) {
  Thread& t = self();
  t.inbox = &opened(at);
  t.phase = static_cast<uint8_t>(parity);
  // Also if the phase has ended: on a GPU, other threads may run before this one goes on.
  wait_at(Wait::kInbox);
}

}  // namespace simt
