// Goal: what a person reads is aligned and says the right number. Method: tables and quantities
// against their exact text, limits of the progress line.
#include "clients/cli/output.h"

#include <gtest/gtest.h>

#include "clients/cli/progress.h"

namespace reprise::cli {
namespace {

TEST(Output, TableAlignsTextLeftAndNumbersRight) {
  Table table({"JOB", "DONE", "STATE"});
  table.Add({"a", "1,024", "running"});
  table.Add({"long-name", "7", "paused"});
  EXPECT_EQ(table.Render(),
            "JOB         DONE  STATE\n"
            "a          1,024  running\n"
            "long-name      7  paused\n");
}

TEST(Output, TableCountsCharactersNotBytes) {
  Table table({"TASK", "N"});
  table.Add({"größer", "1"});
  table.Add({"abc", "22"});
  EXPECT_EQ(table.Render(),
            "TASK     N\n"
            "größer   1\n"
            "abc     22\n");
}

TEST(Output, TableWithoutRowsIsItsHeader) {
  EXPECT_TRUE(Table({"A"}).empty());
  EXPECT_EQ(Table({"A", "B"}).Render(), "A  B\n");
}

TEST(Output, FactsAlignValues) {
  Facts facts;
  facts.Add("tokens", "12");
  facts.Add("mean reward", "0.5");
  EXPECT_EQ(facts.Render(), "  tokens       12\n  mean reward  0.5\n");
}

TEST(Output, Quantities) {
  EXPECT_EQ(Count(0), "0");
  EXPECT_EQ(Count(999), "999");
  EXPECT_EQ(Count(1000), "1,000");
  EXPECT_EQ(Count(1234567), "1,234,567");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1024), "1.0 KiB");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes((1 << 20) - 1), "1.0 MiB");
  EXPECT_EQ(HumanBytes(3ull << 40), "3.0 TiB");
  EXPECT_EQ(HumanSeconds(0.0123), "12 ms");
  EXPECT_EQ(HumanSeconds(0.9999), "1.0 s");
  EXPECT_EQ(HumanSeconds(59.99), "1 min 0 s");
  EXPECT_EQ(HumanSeconds(75.2), "1 min 15 s");
  EXPECT_EQ(HumanSeconds(7260), "2 h 1 min");
  EXPECT_EQ(LocalTime(0), "");
}

TEST(Output, ShellQuoteIsWhatAShellTakesBack) {
  EXPECT_EQ(ShellQuote("out/a-b.jsonl"), "out/a-b.jsonl");
  EXPECT_EQ(ShellQuote(""), "''");
  EXPECT_EQ(ShellQuote("two words"), "'two words'");
  EXPECT_EQ(ShellQuote("it's"), "'it'\\''s'");
}

TEST(Output, OneLineCutsAtCharacters) {
  EXPECT_EQ(OneLine("short", 10), "short");
  EXPECT_EQ(OneLine("a\nb", 10), "a b");
  EXPECT_EQ(OneLine("0123456789", 8), "01234...");
  EXPECT_EQ(OneLine("ääääääääää", 8), "äääää...");
  EXPECT_EQ(Width(OneLine(std::string(500, 'x'), 80)), 80u);
}

TEST(Output, ProgressLineShowsShareAndFits) {
  EXPECT_EQ(ProgressLine("bulk", 1, 2, "9/s", 80), "bulk [############............] 1/2  9/s");
  EXPECT_EQ(ProgressLine("bulk", 0, 0, "", 80), "bulk [########################] 0/0");
  EXPECT_EQ(ProgressLine("bulk", 5, 2, "", 80), "bulk [########################] 2/2");
  EXPECT_EQ(Width(ProgressLine("bulk", 1, 2, std::string(200, 'n'), 60)), 60u);
}

}  // namespace
}  // namespace reprise::cli
