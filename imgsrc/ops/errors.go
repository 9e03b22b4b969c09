package ops

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"

	"github.com/docker/distribution/registry/api/errcode"
	registryv2 "github.com/docker/distribution/registry/api/v2"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/proxy"
)

// A failure is an error whose text says it all and whose condition is found with errors.Is. It does not wrap what it was
// made from: a library's error may have credentials in it.
type failure struct {
	text      string
	condition error // nil: none that has a name
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.condition }

func fail(condition error, format string, args ...any) error {
	return &failure{fmt.Sprintf(format, args...), condition}
}

// conditions are the errors that are what they say, wherever they come from.
var conditions = []error{
	context.Canceled,
	imgsrc.ErrNotFound, imgsrc.ErrDamaged, imgsrc.ErrInvalid, imgsrc.ErrUnsupported, imgsrc.ErrReadOnly, imgsrc.ErrDenied,
	imgsrc.ErrExists, imgsrc.ErrInUse,
	syscall.ECANCELED, syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ETIMEDOUT, syscall.ENOSPC,
	syscall.EACCES, syscall.EPERM, syscall.EROFS, syscall.ENOENT, syscall.ENOTDIR, syscall.ENAMETOOLONG, syscall.ELOOP,
}

// sameAs are the system's errors that mean the same as one of conditions to whoever pushes.
var sameAs = map[syscall.Errno]error{
	syscall.ENETUNREACH: syscall.EHOSTUNREACH,
	syscall.EDQUOT:      syscall.ENOSPC,
	syscall.EEXIST:      imgsrc.ErrExists,
	syscall.ENOTEMPTY:   imgsrc.ErrExists,
	syscall.ENOTSUP:     imgsrc.ErrUnsupported,
}

// condition returns what errors.Is shall find in err, nil if it is nothing that has a name.
func condition(err error) error {
	for _, c := range conditions {
		if errors.Is(err, c) {
			return c
		}
	}
	for errno, c := range sameAs {
		if errors.Is(err, errno) {
			return c
		}
	}
	switch {
	case denied(err):
		return imgsrc.ErrDenied
	case unsupported(err):
		return imgsrc.ErrUnsupported
	case unknown(err), errors.Is(err, storage.ErrImageUnknown), errors.Is(err, storage.ErrLayerUnknown):
		return imgsrc.ErrNotFound
	}
	var dns *net.DNSError
	var address *net.AddrError
	var timeout net.Error
	switch {
	case errors.As(err, &address): // a port that is none
		return imgsrc.ErrInvalid
	case errors.As(err, &dns) && !dns.IsTimeout:
		return syscall.EHOSTUNREACH
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return syscall.ETIMEDOUT
	}
	return inWords(err)
}

// inWords is the condition of an index that could not be written: the library joins the texts of the attempts at it, and leaves
// the errors behind.
func inWords(err error) error {
	if !strings.Contains(err.Error(), "Uploading manifest list failed, attempted the following formats") {
		return nil
	}
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EACCES, syscall.EROFS, syscall.ECONNREFUSED, syscall.EHOSTUNREACH} {
		if strings.Contains(err.Error(), errno.Error()) {
			return errno
		}
	}
	return nil
}

// denied reports whether a registry or the signature policy refused.
func denied(err error) bool {
	return unauthorized(err) || rejected(err)
}

// unauthorized reports whether a registry refused for want of credentials or rights.
func unauthorized(err error) bool {
	var credentials docker.ErrUnauthorizedForCredentials
	var status docker.UnexpectedHTTPStatusError
	var code errcode.ErrorCoder
	switch {
	case errors.As(err, &credentials):
		return true
	case errors.As(err, &status):
		return status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden
	case errors.As(err, &code):
		return code.ErrorCode() == errcode.ErrorCodeUnauthorized || code.ErrorCode() == errcode.ErrorCodeDenied
	}
	// An answer whose body is not what registries send has a type that only the library can name.
	return proxy.Unauthorized(err) || strings.Contains(err.Error(), "StatusCode: 401,") || strings.Contains(err.Error(), "StatusCode: 403,")
}

// rejected reports whether the signature policy refused.
func rejected(err error) bool {
	var requirement signature.PolicyRequirementError
	var invalid signature.InvalidSignatureError
	return errors.As(err, &requirement) || errors.As(err, &invalid)
}

// unsupported reports whether the destination cannot hold the image, or not in the form that was asked for.
func unsupported(err error) bool {
	var typ types.ManifestTypeRejectedError
	var layers manifest.ManifestLayerCompressionIncompatibilityError
	var code errcode.ErrorCoder
	switch {
	case errors.As(err, &typ), errors.As(err, &layers), isArtifact(err):
		return true
	case errors.As(err, &code):
		return code.ErrorCode() == errcode.ErrorCodeUnsupported
	}
	// The library joins the texts of several attempts, and leaves the errors behind.
	return strings.Contains(err.Error(), "Uploading manifest failed, attempted the following formats")
}

// noRepository reports whether a registry has no such repository, and makes none of its own accord.
func noRepository(err error) bool {
	var code errcode.ErrorCoder
	return errors.As(err, &code) && code.ErrorCode() == registryv2.ErrorCodeNameUnknown
}

// isArtifact reports whether the library was asked for something that only an image has.
func isArtifact(err error) bool {
	var artifact manifest.NonImageArtifactError
	return errors.As(err, &artifact)
}

// A sourceError is a failure to read from the image's own source, which nothing at the other end will mend. A registry that
// is the source repeats by itself what may succeed a little later.
type sourceError struct{ error }

func (e *sourceError) Unwrap() error { return e.error }

// hintFor says what to do about an error; empty if that is not known. What the operation's other end would have one do is not
// the answer to a failure of the source.
func (op operation) hintFor(err error) string {
	if source := (*sourceError)(nil); errors.As(err, &source) {
		return sourceHint(err)
	}
	if op.hint == nil {
		return ""
	}
	return op.hint(err)
}

// sourceHint says what to do about an image that cannot be read.
func sourceHint(err error) string {
	switch c := condition(err); {
	case errors.Is(c, syscall.ECONNREFUSED), errors.Is(c, syscall.EHOSTUNREACH), errors.Is(c, syscall.ETIMEDOUT):
		return "the image is read from there: try again when it answers"
	case errors.Is(c, imgsrc.ErrDamaged):
		return "the image is damaged where it is read: get it anew"
	}
	return roomHint(err)
}

// registryHint says what to do about an error of a push to the registry host; empty if that is not known.
func registryHint(err error, host string) string {
	var record tls.RecordHeaderError
	var certificate *tls.CertificateVerificationError
	if blame := proxy.Blame(err, host); blame != "" {
		return blame
	}
	switch c := condition(err); {
	case rejected(err):
		return localHint(err)
	case noRepository(err):
		return fmt.Sprintf("%s makes no repositories on its own: make it there first", host)
	case unauthorized(err):
		return fmt.Sprintf("log in with `podman login %s`, or name the credentials with authfile=", host)
	case errors.Is(c, syscall.ECONNREFUSED):
		return fmt.Sprintf("is a registry running at %s?", host)
	case errors.Is(c, syscall.EHOSTUNREACH):
		return fmt.Sprintf("check the name %s and the network", host)
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record), errors.As(err, &certificate):
		return "add tls-verify=false if this registry has no certificate that this machine trusts"
	case c == nil && statusOf(err) >= http.StatusInternalServerError:
		return fmt.Sprintf("the log of %s may say why; a full disk is one reason", host)
	}
	return localHint(err)
}

// localHint says what to do about an error of a push to this machine.
func localHint(err error) string {
	switch {
	case rejected(err):
		return "the signature policy (policy.json) does not let this image through"
	case isArtifact(err):
		return "an artifact can go as it is to docker://, oci:, oci-archive: and dir:"
	case errors.Is(err, fs.ErrPermission):
		return "write to a place that you own"
	}
	return roomHint(err)
}

// roomHint says what to do about a disk that is full.
func roomHint(err error) string {
	if errors.Is(condition(err), syscall.ENOSPC) {
		return "make room on that disk"
	}
	return ""
}
