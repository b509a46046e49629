// What a snapshot of a container must keep, for every way in which its image is stored. A fixture
// gives a sandbox, and how one is made from a snapshot.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "tests/integration/container_support.h"

namespace reprise::sandboxd {

class SnapshotCases : public ContainerTest {
 protected:
  // Everything that a program inside can tell of these files.
  static constexpr char kLook[] =
      "for d in /work /etc /opt /bin /gone; do find $d 2>/dev/null | sort | while read f; do"
      " stat -c '%n %F %a %u %g %Y %N' \"$f\"; [ -f \"$f\" ] && [ ! -L \"$f\" ] && md5sum < \"$f\";"
      " done; done; true";

  TestSandbox From(const std::string& image) {
    return Create([&](sandbox::SandboxSpec& spec) { spec.set_image(image); });
  }
  SnapshotImage Take(const TestSandbox& box, const std::string& name) {
    absl::StatusOr<SnapshotImage> made = tier_->SnapshotSandbox(box.ref(), name);
    EXPECT_TRUE(made.ok()) << made.status();
    return made.ok() ? *std::move(made) : SnapshotImage();
  }

  void KeepsWhatWasWritten(const TestSandbox& box) {
    const Done written = Run(
        box,
        "mkdir -p /work/d/e /opt && cd /work && echo one > a && ln a b && ln -s a c &&"
        " echo x > d/e/f && chmod 4751 d/e/f && mkfifo p &&"
        " chmod 1777 d && printf 'a\\tb' > 'd/odd name' && rm /bin/wget &&"
        " rm -rf /etc && mkdir /etc && echo new > /etc/only && touch -d '2001-02-03 04:05:06' a &&"
        " dd if=/dev/zero of=hole bs=1 count=1 seek=5000000 2>/dev/null && echo done");
    ASSERT_EQ(written.out, "done\n") << written.err;
    sandbox::ExecuteRequest other =
        Shell(box, "echo theirs > /work/d/owned; stat -c %u /work/d/owned");
    other.set_user("1000");
    const Done owned = Run(box, other);
    ASSERT_EQ(owned.out, "1000\n") << owned.err << owned.result.message();
    const SnapshotImage made = Take(box, "kept");
    EXPECT_EQ(made.image.name(), "kept");
    const std::string here = Run(box, kLook).out;
    const TestSandbox copy = From("kept");
    EXPECT_EQ(Run(copy, kLook).out, here);
    EXPECT_EQ(Run(copy,
                  "cd /work; [ $(stat -c %i a) = $(stat -c %i b) ] && echo linked;"
                  " echo two >> a; cat c; ls /etc; test -e /bin/wget || echo gone")
                  .out,
              "linked\none\ntwo\nonly\ngone\n");
    EXPECT_EQ(Run(box, "cat /work/b").out, "one\n") << "the fork has files of its own";
    // One more, of what was made from the first.
    Take(copy, "kept-twice");
    EXPECT_EQ(Run(From("kept-twice"), "cat /work/a; ls /etc").out, "one\ntwo\nonly\n");
  }

  void CostsWhatChanged(const TestSandbox& box) {
    constexpr uint64_t kBig = 8 << 20;
    ASSERT_EQ(Run(box, "head -c 8388608 /dev/urandom > /work/big; echo $?").out, "0\n");
    const SnapshotImage first = Take(box, "first");
    EXPECT_GE(first.stored_bytes, kBig);
    const SnapshotImage same = Take(box, "same");
    EXPECT_EQ(same.image.digest(), first.image.digest());
    EXPECT_LT(same.stored_bytes, kBig / 8);
    ASSERT_EQ(Run(box, "echo little > /work/small; echo $?").out, "0\n");
    const SnapshotImage second = Take(box, "second");
    EXPECT_LT(second.stored_bytes, kBig / 8);
    EXPECT_NE(second.image.digest(), first.image.digest());
    // In place, and with the time of before.
    ASSERT_EQ(Run(box,
                  "touch -r /work/big /work/t;"
                  " printf XYZ | dd of=/work/big bs=1 seek=1000 conv=notrunc 2>/dev/null;"
                  " touch -r /work/t /work/big; echo $?")
                  .out,
              "0\n");
    Take(box, "third");
    const std::string sum = "md5sum < /work/big";
    EXPECT_EQ(Run(From("third"), sum).out, Run(box, sum).out);
    EXPECT_EQ(Run(From("second"), sum).out, Run(From("first"), sum).out);
    EXPECT_NE(Run(From("second"), sum).out, Run(box, sum).out);
  }

  void IsTakenWhileAProgramWrites(const TestSandbox& box) {
    Running running =
        Start(box, Shell(box,
                         "i=0; echo up; while [ ! -e /work/go ]; do i=$((i+1)); echo $i > /work/n;"
                         " echo $i > /work/m; done; echo went"));
    ASSERT_NE(running.call, nullptr);
    EXPECT_TRUE(running.recording->WaitForText("up\n"));
    for (int i = 0; i < 3; ++i) {
      const std::string name = "busy-" + std::to_string(i);
      Take(box, name);
      // m is written after n: at one moment they differ by one at most, or m is cut to nothing.
      EXPECT_EQ(Run(From(name),
                    "n=$(cat /work/n); m=$(cat /work/m); [ -z \"$n\" ] || [ -z \"$m\" ] ||"
                    " [ $n = $m ] || [ $n = $((m+1)) ] && echo good")
                    .out,
                "good\n");
    }
    Run(box, "touch /work/go");
    EXPECT_EQ(running.recording->WaitForEnd().outcome(), sandbox::OUTCOME_EXITED);
    EXPECT_EQ(running.recording->out(), "up\nwent\n");
  }
};

}  // namespace reprise::sandboxd
