// What the image tests share: a catalogue in a scratch directory, trees to import, and comparison
// of two trees with everything that a file system tells about them.
#pragma once

#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "sandboxd/image/image_catalog.h"
#include "sandboxd/image/image_mounts.h"

namespace reprise::sandboxd {

// One line an entry below `root`, ordered: path, type, mode, owner, size, mtime, links, target or
// content's digest, kept extended attributes.
std::vector<std::string> Describe(const std::string& root);

// Files of many sizes, links of both kinds, attributes, odd names, holes, a directory of 500.
void MakeRichTree(const std::string& root);

void WriteText(const std::string& path, const std::string& text);
std::string ReadText(const std::string& path);

class ImageTest : public ::testing::Test {
 protected:
  ~ImageTest() override;
  std::unique_ptr<ImageCatalog> OpenCatalog();
  // Skips the test, with the reason, where the host cannot mount images.
  void NeedsMounts();
  // An overlay of the image's layers and an upper directory in the scratch directory.
  std::string MountOverlay(const std::vector<std::string>& lower, const std::string& name);
  std::string Dir(const std::string& name) const { return scratch_.path() + "/" + name; }

  base::ScratchDir scratch_{"reprise-image"};
  ImageCatalogOptions options_{scratch_.path() + "/catalog", ""};
  std::unique_ptr<ImageMounts> mounts_;
  std::vector<std::string> overlays_;
};

}  // namespace reprise::sandboxd
