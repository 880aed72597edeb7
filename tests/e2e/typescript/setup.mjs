// The SDK uses the global WebSocket, which Node has from version 22 on.
import { WebSocket } from 'undici'

globalThis.WebSocket ??= WebSocket
