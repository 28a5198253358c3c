;;; What both scripts begin with: the request, the lines of JSON, and words for what went wrong.
;;;
;;; Standard output is for lines alone: what channels print there goes to standard error, the evaluation's log.

(define %output
  (let ((output (duplicate-port (current-output-port) "w")))
    (set-port-encoding! output "UTF-8")
    (dup2 2 1)
    output))

(use-modules (guix channels)
             (guix derivations)
             (guix store)
             (ice-9 exceptions)
             (ice-9 match)
             (json)
             (srfi srfi-1)
             (srfi srfi-9))

(define %request
  (call-with-input-string (cadr (command-line)) read))

(define (request key)
  (assq-ref %request key))

;; One line, at once: builds begin while this goes on.
(define (print . members)
  (display (scm->json-string members) %output)
  (newline %output)
  (force-output %output))

;; A line for the evaluation's log.
(define (say text . arguments)
  (format (current-error-port) "gorget: ~?~%" text arguments))

;; What a module has under this name, or something that takes its place where it has none. Evaluated, as accessors of
;; records are macros that stand for procedures.
(define (find-procedure module name default)
  (or (false-if-exception
       (and (module-variable (resolve-interface module) name)
            (eval name (resolve-module module))))
      default))

(define formatted-message?
  (find-procedure '(guix diagnostics) 'formatted-message? (const #f)))
(define formatted-message-string
  (find-procedure '(guix diagnostics) 'formatted-message-string (const "")))
(define formatted-message-arguments
  (find-procedure '(guix diagnostics) 'formatted-message-arguments (const '())))

;; What was said last: Guix ends itself when it does not know a package, and only says why.
(define %said "")

;; Remembers the lines that go to PORT.
(define (remembering port)
  (define line "")
  (define (put text)
    (display text port)
    (match (string-split (string-append line text) #\newline)
      ((lines ... rest)
       (set! line rest)
       (match (remove string-null? lines)
         ((_ ... last) (set! %said last))
         (() #t)))))
  (make-soft-port
   (vector (compose put string) put (lambda () (force-output port)) #f #f)
   "w"))

(let ((port (remembering (current-error-port))))
  (setvbuf port 'line)
  (set-current-error-port port)
  (current-warning-port port)
  ((find-procedure '(guix diagnostics) 'guix-warning-port (const #f)) port))

;; What was raised. Guile would wrap what is no error of its own, such as a store's, which then has not its type any more.
(define (raised key arguments)
  (match arguments
    (((? exception? exception)) exception)
    (_ (make-exception-from-throw key arguments))))

;; What went wrong, in a line or a few.
(define (message key arguments)
  (let ((exception (raised key arguments)))
    (cond ((eq? key 'quit)
           (if (string-null? %said) "it ends Guix" %said))
          ((formatted-message? exception)
           (apply format #f (formatted-message-string exception)
                  (formatted-message-arguments exception)))
          ((store-protocol-error? exception)
           (store-protocol-error-message exception))
          ((store-connection-error? exception)
           (format #f "cannot connect to the store daemon: ~a"
                   (strerror (store-connection-error-code exception))))
          ((and (not (eq? key 'misc-error))
                (memq key '(srfi-34 %exception))
                ((exception-predicate &message) exception))
           (exception-message exception))
          (else
           (string-trim-both
            (call-with-output-string
              (lambda (port)
                (print-exception port #f key arguments))))))))

;; Whether what went wrong is no fault of what was being looked at: the store is away, or the machine short of something.
(define (foreign? key arguments)
  (let ((exception (raised key arguments)))
    (or (store-connection-error? exception)
        (eq? key 'out-of-memory)
        (and (eq? key 'system-error)
             (memv (system-error-errno (cons key arguments))
                   (list EPIPE ECONNRESET ECONNREFUSED ENOSPC ENOMEM EMFILE ENFILE))
             #t))))

;; The value of THUNK; when it fails by a fault of its own, that of FAILED with a message.
(define (guarded thunk failed)
  (let ((stack #f))
    (set! %said "")
    (catch #t
      thunk
      (lambda (key . arguments)
        (when (foreign? key arguments)
          (apply throw key arguments))
        (unless (eq? key 'quit)
          (when stack
            (display-backtrace stack (current-error-port))))
        (failed (message key arguments)))
      (lambda _
        (set! stack (make-stack #t 2))))))

;; The exit status of what is worth another try; src/evaluate/ask.rs has it, too.
(define %foreign 75)

;; Runs THUNK; what fails it fails the evaluation, which says the last line.
(define (or-fail thunk)
  (catch #t
    thunk
    (lambda (key . arguments)
      (say "~a" (string-join (string-split (message key arguments) #\newline) " "))
      (primitive-_exit (if (foreign? key arguments) %foreign 1)))
    (lambda (key . arguments)
      (unless (eq? key 'quit)
        (display-backtrace (make-stack #t 2) (current-error-port))))))

(define (introduction channel)
  (match (assq-ref channel 'introduction)
    ((commit signer)
     (make-channel-introduction commit (openpgp-fingerprint signer)))
    (#f #f)))
