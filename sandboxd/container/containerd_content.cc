// Blobs of containerd's content store, and the image records that name them.
#include <algorithm>
#include <ctime>

#include "base/ids.h"
#include "base/status_macros.h"
#include "sandboxd/container/containerd_impl.h"

namespace reprise::sandboxd {
namespace {

namespace content = ctrd::content::v1;
namespace images = ctrd::images::v1;

constexpr size_t kWriteChunkBytes = 1 << 20;  // below gRPC's 4 MiB message limit

ImageRecord FromProto(const images::Image& image) {
  ImageRecord record;
  record.name = image.name();
  record.target = {image.target().media_type(), image.target().digest(), image.target().size()};
  record.labels = {image.labels().begin(), image.labels().end()};
  return record;
}

}  // namespace

// One write transaction: STAT-free, the ref is fresh, so that two imports never share a
// half-written blob.
absl::Status ContainerdClient::WriteBlob(const std::string& lease, const BlobRef& blob,
                                         const Labels& labels,
                                         const std::function<absl::StatusOr<std::string>()>& next) {
  const std::string ref = fmt::format("reprise-{}-{}", blob.digest, base::RandomHex(8));
  const std::string what = fmt::format("write blob {}", blob.digest);
  grpc::ClientContext context;
  impl_->Prepare(context, kTransferDeadline, lease);
  auto stream = impl_->content->Write(&context);

  content::WriteContentRequest request;
  content::WriteContentResponse response;
  int64_t offset = 0;
  absl::Status source_error;
  bool accepted = true;
  while (accepted) {
    absl::StatusOr<std::string> piece = next();
    if (!piece.ok()) {
      source_error = piece.status();
      break;
    }
    if (piece->empty()) break;
    for (size_t at = 0; accepted && at < piece->size(); at += kWriteChunkBytes) {
      request.Clear();
      request.set_action(content::WRITE);
      request.set_ref(ref);
      request.set_total(blob.size);
      request.set_expected(blob.digest);
      request.set_offset(offset);
      request.set_data(piece->substr(at, kWriteChunkBytes));
      offset += static_cast<int64_t>(request.data().size());
      accepted = stream->Write(request) && stream->Read(&response);
    }
  }
  if (!source_error.ok()) {
    context.TryCancel();
    (void)stream->Finish();
    content::AbortRequest abort;
    google::protobuf::Empty empty;
    abort.set_ref(ref);
    (void)impl_->Call(*impl_->content, &content::Content::Stub::Abort, abort, &empty, kRpcDeadline,
                      what);
    return source_error;
  }
  if (accepted) {
    request.Clear();
    request.set_action(content::COMMIT);
    request.set_ref(ref);
    request.set_total(blob.size);
    request.set_expected(blob.digest);
    request.set_offset(offset);
    *request.mutable_labels() = {labels.begin(), labels.end()};
    if (stream->Write(request)) (void)stream->Read(&response);
  }
  stream->WritesDone();
  while (stream->Read(&response)) {
  }
  absl::Status status = impl_->Error(stream->Finish(), what);
  if (absl::IsAlreadyExists(status)) status = absl::OkStatus();
  if (!status.ok()) {
    content::AbortRequest abort;
    google::protobuf::Empty empty;
    abort.set_ref(ref);
    (void)impl_->Call(*impl_->content, &content::Content::Stub::Abort, abort, &empty, kRpcDeadline,
                      what);
    return status;
  }
  if (labels.empty()) return absl::OkStatus();
  content::UpdateRequest update;
  content::UpdateResponse updated;
  update.mutable_info()->set_digest(blob.digest);
  *update.mutable_info()->mutable_labels() = {labels.begin(), labels.end()};
  for (const auto& [key, value] : labels) update.mutable_update_mask()->add_paths("labels." + key);
  return impl_->Call(*impl_->content, &content::Content::Stub::Update, update, &updated,
                     kRpcDeadline, fmt::format("label blob {}", blob.digest), lease);
}

absl::StatusOr<std::string> ContainerdClient::ReadBlob(const std::string& digest,
                                                       uint64_t max_bytes) {
  grpc::ClientContext context;
  impl_->Prepare(context, kRpcDeadline);
  content::ReadContentRequest request;
  request.set_digest(digest);
  auto stream = impl_->content->Read(&context, request);
  content::ReadContentResponse response;
  std::string data;
  while (stream->Read(&response)) {
    if (data.size() + response.data().size() > max_bytes) {
      context.TryCancel();
      (void)stream->Finish();
      return absl::ResourceExhaustedError(
          fmt::format("blob {} is larger than {} bytes", digest, max_bytes));
    }
    data += response.data();
  }
  RETURN_IF_ERROR(impl_->Error(stream->Finish(), fmt::format("read blob {}", digest)));
  return data;
}

absl::StatusOr<std::vector<std::string>> ContainerdClient::ListBlobs() {
  grpc::ClientContext context;
  impl_->Prepare(context, kRpcDeadline);
  auto stream = impl_->content->List(&context, content::ListContentRequest());
  content::ListContentResponse response;
  std::vector<std::string> digests;
  while (stream->Read(&response)) {
    for (const auto& info : response.info()) digests.push_back(info.digest());
  }
  RETURN_IF_ERROR(impl_->Error(stream->Finish(), "list blobs"));
  return digests;
}

absl::Status ContainerdClient::PutImage(const ImageRecord& image) {
  images::CreateImageRequest create;
  images::CreateImageResponse created;
  images::Image* proto = create.mutable_image();
  proto->set_name(image.name);
  *proto->mutable_labels() = {image.labels.begin(), image.labels.end()};
  proto->mutable_target()->set_media_type(image.target.media_type);
  proto->mutable_target()->set_digest(image.target.digest);
  proto->mutable_target()->set_size(image.target.size);
  const int64_t now = std::time(nullptr);
  proto->mutable_created_at()->set_seconds(now);
  proto->mutable_updated_at()->set_seconds(now);
  const std::string what = fmt::format("record image {}", image.name);
  absl::Status status = impl_->Call(*impl_->images, &images::Images::Stub::Create, create, &created,
                                    kRpcDeadline, what);
  if (!absl::IsAlreadyExists(status)) return status;
  images::UpdateImageRequest update;
  images::UpdateImageResponse updated;
  *update.mutable_image() = create.image();
  return impl_->Call(*impl_->images, &images::Images::Stub::Update, update, &updated, kRpcDeadline,
                     what);
}

absl::StatusOr<ImageRecord> ContainerdClient::GetImage(const std::string& name) {
  images::GetImageRequest request;
  images::GetImageResponse response;
  request.set_name(name);
  RETURN_IF_ERROR(impl_->Call(*impl_->images, &images::Images::Stub::Get, request, &response,
                              kRpcDeadline, fmt::format("get image {}", name)));
  return FromProto(response.image());
}

absl::StatusOr<std::vector<ImageRecord>> ContainerdClient::ListImages() {
  images::ListImagesRequest request;
  images::ListImagesResponse response;
  RETURN_IF_ERROR(impl_->Call(*impl_->images, &images::Images::Stub::List, request, &response,
                              kRpcDeadline, "list images"));
  std::vector<ImageRecord> records;
  for (const images::Image& image : response.images()) records.push_back(FromProto(image));
  std::sort(records.begin(), records.end(),
            [](const ImageRecord& a, const ImageRecord& b) { return a.name < b.name; });
  return records;
}

absl::Status ContainerdClient::DeleteImage(const std::string& name) {
  images::DeleteImageRequest request;
  google::protobuf::Empty response;
  request.set_name(name);
  request.set_sync(true);
  return impl_->Call(*impl_->images, &images::Images::Stub::Delete, request, &response,
                     kTaskDeadline, fmt::format("delete image {}", name));
}

}  // namespace reprise::sandboxd
